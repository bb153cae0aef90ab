"""A Django project with dgen, for test_clients.py."""
import os

SECRET_KEY = "none"
ROOT_URLCONF = "shop.views"
INSTALLED_APPS = ["shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
ALLOWED_HOSTS = ["*"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ["PGDATABASE"],
    "ATOMIC_REQUESTS": True,
    "DISABLE_SERVER_SIDE_CURSORS": True,
}}
if "REPLICA_HOST" in os.environ:
    DATABASES["replica"] = dict(DATABASES["default"], HOST=os.environ["REPLICA_HOST"],
                                PORT=os.environ["REPLICA_PORT"])
    DATABASE_ROUTERS = ["shop.router.ReadFromReplica"]
