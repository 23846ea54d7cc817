"""A model over HTTP, as OpenAI's clients ask for it. Needs the extra ``serve``."""
