"""Typed requests and answers with FastAPI; its own description is at /openapi.json."""

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI(title="Adder")


class Numbers(BaseModel):
    numbers: list[float]


@app.get("/")
def describe():
    return {"service": "adder"}


@app.post("/sum")
def add(body: Numbers):
    return {"sum": sum(body.numbers)}
