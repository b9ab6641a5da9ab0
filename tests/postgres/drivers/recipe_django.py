"""One request through the middleware of docs/tagging.md, the file in argv[2], to the database in argv[1]."""

import runpy
import sys
from urllib.parse import urlsplit

import django
from django.conf import settings


def main(url, recipe):
    at = urlsplit(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": at.hostname,
        "PORT": at.port,
        "USER": at.username,
        "NAME": at.path.lstrip("/"),
        "CONN_MAX_AGE": None,
    }
    settings.configure(DATABASES={"default": database}, ALLOWED_HOSTS=["testserver"])
    django.setup()
    from django.db import connection, transaction
    from django.test import RequestFactory

    @transaction.atomic
    def view(request):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 'five'")
            print(cursor.fetchone()[0])

    headers = {"X-Request-Id": "5f0c", "X-Tenant": "acme"}
    runpy.run_path(recipe)["tag_requests"](view)(RequestFactory().get("/orders", headers=headers))
    with connection.cursor() as cursor:
        cursor.execute("SHOW bursar.request_id")
        print(cursor.fetchone())


main(*sys.argv[1:])
