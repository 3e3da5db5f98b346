from container.app import create_app
from container.preload import load
from container.settings import Settings

settings = Settings.read()
app = create_app(settings, load(settings))
