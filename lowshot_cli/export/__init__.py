"""Models as files that run without lowshot."""
