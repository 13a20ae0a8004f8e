"""Tools of those who work on Tidemill; nothing here reaches a user's machine."""
