from container import app as one
from container import multi_app as many
from container import preload
from container.settings import Settings

settings = Settings.read()
if settings.multi_model:
    preload.libraries(settings)
    app = many.create_app(settings)
else:
    app = one.create_app(settings, preload.load(settings))
