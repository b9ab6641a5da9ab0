"""What both Django programs say of their database: Django has no connection strings of its own."""

from urllib.parse import urlsplit

import django
from django.conf import settings


def set_up(url, options=(), **more):
    """Settings for the database at `url`, and Django ready to be imported from."""
    at = urlsplit(url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": at.hostname,
        "PORT": at.port,
        "USER": at.username,
        "NAME": at.path.lstrip("/"),
        "CONN_MAX_AGE": None,
        "OPTIONS": dict(options),
    }
    settings.configure(DATABASES={"default": database}, **more)
    django.setup()
