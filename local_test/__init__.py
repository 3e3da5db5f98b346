"""SageMaker on your machine."""
