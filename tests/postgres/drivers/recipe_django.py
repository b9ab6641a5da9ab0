"""One request through the middleware of docs/tagging.md, the file in argv[2], to the database in argv[1]."""

import runpy
import sys

from django_settings import set_up


def main(url, recipe):
    set_up(url, ALLOWED_HOSTS=["testserver"])
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
