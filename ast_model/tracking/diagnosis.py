"""Explain errors of the tracking server and of its database."""

DATABASE_REMEDIES = {
    "is not a database": "the file is damaged: restore a backup, or rename it to start a new database",
    "malformed": "the file is damaged: restore a backup, or rename it to start a new database",
    "no such table": "the file is damaged: restore a backup, or rename it to start a new database",
    "database is locked": "another program is writing to it: wait for it or stop it, then retry",
    "readonly": "make the file and its folder writable",
    "unable to open": "make the file and its folder readable and writable",
    "disk is full": "make room on the disk",
    "Can't locate revision": "another version of MLflow wrote it: install that version or a newer one",
    "out-of-date database schema": "another version of MLflow wrote it: run `mlflow db upgrade` with its address",
}
"""Texts in the errors of SQLite and MLflow, with the steps that help."""


def summarise_error(error: BaseException) -> str:
    """Return the first line of an error. SQLAlchemy adds the statement and its parameters, which do not help users."""
    return str(getattr(error, "orig", error)).split("\n[SQL", 1)[0].strip() or type(error).__name__


def suggest_fix(uri: str, error: BaseException) -> str:
    """Return the end of an error message: the steps that may help after an error at this address."""
    if uri.startswith(("http://", "https://")):
        return "check MLFLOW_TRACKING_URI and the server's log"
    for text, remedy in DATABASE_REMEDIES.items():
        if text in str(error):
            return remedy
    return "check that the database and the folder of artifacts next to it are complete"
