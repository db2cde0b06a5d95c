"""Pictures that show what each part of the model does, made by real engines."""
