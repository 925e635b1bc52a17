"""HTTP as Ollama speaks it. The only importer of starlette and uvicorn; decides nothing about models."""
