// A second reader of sealane links (SPEC.md), in plain Node 20 without packages
// and without a line of the first one's code. It takes what an eavesdropper
// recorded and the record keys, and gives back the plaintext records.
//
//   node reader.mjs capture.json
//
// capture.json: {"transform", "cipher", "padding", "initiator": base64 of all
// that the initiator sent, "responder": the same of the responder, "keys":
// {"initiator": [key 0, key 1, ... in hex], "responder": [...]}}.
//
// On standard output: one line of JSON per record, in the order of each
// direction, {"from", "generation", "number", "type", "body": base64}. A
// handshake that ends with the clear response, as behind every decoy, has none.
// Anything that does not belong on the wire is an error: exit code 1.

import { createDecipheriv } from "node:crypto";
import { readFileSync } from "node:fs";
import { constants, gunzipSync } from "node:zlib";
import process from "node:process";

const ivLength = 12;
const tagLength = 16;
const shareLength = 2096;
const message3Length = 32 + 16 + 5120 + 16; // the key and the payload, each with its tag
const badRequest = '{"sdmp":{"version":"0.13","schemas":["response"]},"response":{"status":"bad_request","identifier":"session"}}';
const types = ["data", "control", "close", "rekey"];

function check(ok, what) {
  if (!ok) throw new Error(what);
}

// Texts stand back to back. One ends with the brace that closes its first.
function endOfText(wire, start) {
  let depth = 0;
  let inString = false;
  for (let i = start; i < wire.length; i++) {
    const c = String.fromCharCode(wire[i]);
    if (inString) {
      check(c !== "\\", "an escape");
      inString = c !== '"';
    } else if (c === '"') {
      inString = true;
    } else if (c === "{") {
      depth++;
    } else if (c === "}" && --depth === 0) {
      return i + 1;
    }
    check(depth > 0, `a byte between two texts, at ${i}`);
  }
  throw new Error("a text without its end");
}

function parse(text) {
  const container = JSON.parse(text);
  check(JSON.stringify(container) === text, "a text is not what JSON.stringify writes");
  return container;
}

function bytes(base64url) {
  const b = Buffer.from(base64url, "base64url");
  check(b.toString("base64url") === base64url, "base64url that is not canonical");
  return b;
}

// A container with one schema and not a property more than it has.
function checkContainer(container, schema, properties) {
  check(Object.keys(container).join() === `sdmp,${schema}`, `not sdmp and ${schema} alone`);
  check(Object.keys(container.sdmp).join() === "version,schemas", "other properties in sdmp");
  check(container.sdmp.version === "0.13", "another version");
  check(container.sdmp.schemas.length === 1 && container.sdmp.schemas[0] === schema, "other schemas");
  check(Object.keys(container[schema]).join() === properties, `other properties in ${schema}`);
  return container[schema];
}

function share(text) {
  const body = checkContainer(parse(text), "shared_key", "group,share");
  check(body.group === "X25519MLKEM768", "another group");
  check(bytes(body.share).length === shareLength, "a share of another length");
}

function sealed(text) {
  const body = checkContainer(parse(text), "encrypted", "iv,payload,recipients");
  check(Array.isArray(body.recipients) && body.recipients.length === 0, "recipients");
  const iv = bytes(body.iv);
  check(iv.length === ivLength, "an iv of another length");
  return { iv, payload: bytes(body.payload) };
}

function message3(text) {
  const { iv, payload } = sealed(text);
  check(iv.every((b) => b === 0), "the iv of message 3");
  check(payload.length === message3Length, "a message 3 of another length");
}

// take splits n texts off the front of the wire.
function take(wire, n) {
  const texts = [];
  let at = 0;
  while (texts.length < n && at < wire.length) {
    const end = endOfText(wire, at);
    texts.push(wire.toString("latin1", at, end));
    at = end;
  }
  return [texts, wire.subarray(at)];
}

// The transforms, undone: what comes out is the texts.
const undo = {
  json: (wire) => wire,
  packed(wire) {
    const texts = [];
    for (let at = 0; at < wire.length; ) {
      const length = wire.readUInt32BE(at);
      const iv = wire.subarray(at + 4, at + 4 + ivLength);
      const payload = wire.subarray(at + 4 + ivLength, at + 4 + ivLength + length);
      check(payload.length === length, "a record without its end");
      const encrypted = { iv: iv.toString("base64url"), payload: payload.toString("base64url"), recipients: [] };
      texts.push(JSON.stringify({ sdmp: { version: "0.13", schemas: ["encrypted"] }, encrypted }));
      at += 4 + ivLength + length;
    }
    return Buffer.from(texts.join(""), "latin1");
  },
  gzip(wire) {
    check(wire.subarray(0, 10).toString("hex") === "1f8b08000000000000ff", "another gzip header");
    return gunzipSync(wire, { finishFlush: constants.Z_SYNC_FLUSH }); // the member is never finished
  },
};

function decrypt(cipher, key, { iv, payload }) {
  const d = createDecipheriv(cipher, key, iv, { authTagLength: tagLength });
  d.setAuthTag(payload.subarray(payload.length - tagLength));
  return Buffer.concat([d.update(payload.subarray(0, payload.length - tagLength)), d.final()]);
}

function* records(capture, from, wire) {
  const keys = capture.keys[from].map((k) => Buffer.from(k, "hex"));
  const [texts, rest] = take(undo[capture.transform](wire), Infinity);
  check(rest.length === 0, "bytes behind the last text");
  let generation = 0;
  let number = 0n;
  let closed = false;
  for (const text of texts) {
    check(!closed, "a record after the close");
    const record = sealed(text);
    const want = Buffer.alloc(ivLength);
    want.writeBigUInt64BE(number, 4);
    check(record.iv.equals(want), `record ${number} has the iv ${record.iv.toString("hex")}`);
    const plain = decrypt(capture.cipher, keys[generation], record);
    const length = plain.readUInt32BE(1);
    const size = capture.padding ? Math.ceil((5 + length) / capture.padding) * capture.padding : 5 + length;
    check(plain.length === size, "a plaintext of another size");
    check(plain.subarray(5 + length).every((b) => b === 0), "padding that is not zero");
    const type = types[plain[0]];
    const body = plain.subarray(5, 5 + length);
    if (type === "control") {
      const { status } = checkContainer(parse(body.toString("latin1")), "response", "status,identifier");
      check(from === "responder" && generation === 0 && number === 0n && status === "ok", "a control record out of place");
    }
    yield { from, generation, number: Number(number), type, body: body.toString("base64") };
    number++;
    if (type === "rekey") {
      generation++;
      number = 0n;
    }
    closed = type === "close";
  }
  check(closed, "no sealed close");
}

function read(capture) {
  const [texts, rest] = take(Buffer.from(capture.initiator, "base64"), 2);
  check(texts.length === 2, "no message 3");
  share(texts[0]);
  message3(texts[1]);
  const [answers, rest2] = take(Buffer.from(capture.responder, "base64"), 1);
  share(answers[0]);
  if (rest2.toString("latin1") === badRequest) {
    check(rest.length === 0, "bytes behind a message 3 that was refused");
    return [];
  }
  const lines = [...records(capture, "initiator", rest)];
  return lines.concat([...records(capture, "responder", rest2)]);
}

try {
  const lines = read(JSON.parse(readFileSync(process.argv[2], "utf8")));
  process.stdout.write(lines.map((line) => JSON.stringify(line) + "\n").join(""));
} catch (err) {
  process.stderr.write(`${err.message}\n`);
  process.exitCode = 1;
}
