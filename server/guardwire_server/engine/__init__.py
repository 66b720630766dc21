"""Threads and asyncio: what runs models and what waits for them. Meets the models at `backend`."""
