"""The routes, one file a subject; each reads as a table of contents and calls one service."""
