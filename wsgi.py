from container import app as one
from container import multi_app as many
from container import preload
from container.exchange import Front
from container.settings import Settings

settings = Settings.read()
app: Front = many.create_app(settings) if settings.multi_model else one.create_app(settings, preload.load(settings))
