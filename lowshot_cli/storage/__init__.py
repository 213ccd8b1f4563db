"""Files that are whole or absent. Nothing here knows what they hold."""
