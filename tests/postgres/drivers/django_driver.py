"""Django's ORM against the connection string in argv[1]; prints a line for each thing that works. argv[2]
sets this copy of the program off from others."""

import sys

from django.db import IntegrityError, connection, models, transaction

from django_settings import set_up


def ok(what):
    print("ok", what, flush=True)


def main(url, copy=""):
    set_up(url, {"server_side_binding": True}, USE_TZ=True, TIME_ZONE="Europe/Paris")

    class Note(models.Model):
        id = models.IntegerField(primary_key=True)
        text = models.TextField()
        made = models.DateTimeField(auto_now_add=True)

        class Meta:
            app_label = "notes"
            db_table = "django_t" + copy

    with connection.cursor() as cursor:
        cursor.execute(f"drop table if exists django_t{copy}")
    with connection.schema_editor() as editor:
        editor.create_model(Note)
    ok("schema")

    Note.objects.bulk_create(Note(id=n, text=f"note {n}") for n in range(1, 101))
    assert Note.objects.count() == 100
    assert [note.id for note in Note.objects.filter(text__endswith="7").order_by("id")][:3] == [7, 17, 27]
    for n in range(1, 21):
        assert Note.objects.get(pk=n).text == f"note {n}"
    ok("queries")

    with transaction.atomic():
        Note.objects.filter(pk=1).update(text="one")
        try:
            with transaction.atomic():
                Note.objects.create(id=1, text="twice")
            raise AssertionError("a duplicate was taken")
        except IntegrityError:
            pass
        assert Note.objects.get(pk=1).text == "one"
    assert Note.objects.get(pk=1).text == "one"
    ok("transaction")

    try:
        with transaction.atomic():
            Note.objects.all().delete()
            raise RuntimeError
    except RuntimeError:
        pass
    assert Note.objects.count() == 100
    ok("rollback")

    # The ORM's own cursor with hold, outside a transaction.
    assert sum(1 for _ in Note.objects.iterator(chunk_size=10)) == 100
    with transaction.atomic():
        assert sum(1 for _ in Note.objects.iterator(chunk_size=10)) == 100
    ok("iterator")

    with connection.cursor() as cursor:
        cursor.execute("select current_setting('TimeZone')")
        assert cursor.fetchone() == ("UTC",)
    assert Note.objects.filter(made__isnull=False).count() == 100
    ok("time zone")

    connection.close()
    assert Note.objects.count() == 100
    connection.close()
    ok("reconnect")


main(*sys.argv[1:])
