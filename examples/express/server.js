// A small service with Express. Its counter lives in memory, and so survives every sleep of the microVM.
const express = require("express");

const app = express();
let visits = 0;

app.get("/", (request, response) => {
  visits += 1;
  response.json({ visits });
});

const server = app.listen(8080);
process.on("SIGTERM", () => server.close());
