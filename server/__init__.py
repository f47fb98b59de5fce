"""The online room: HTTP in, tokens out, with the right adapter in every request."""
