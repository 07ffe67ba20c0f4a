// Inputs and outputs: Flyte's literals as text. Nothing in a value is interpreted.
import { copyButton, h } from "./dom.js";
import { iso, millis } from "./format.js";

const DEEPEST = 12;
const MOST = 200;
const LONGEST = 20_000;

/** A list of named literals as an element. */
export function namedValues(literals) {
  if (!literals || literals.length === 0) return h("p", { class: "quiet" }, "none");
  return h(
    "dl",
    { class: "values" },
    literals.map(({ name = "", value = {} }) => {
      const plain = plainOf(value, 0);
      const text = typeof plain === "string" ? plain : JSON.stringify(plain, null, 2);
      const isLong = text.length > LONGEST;
      return h(
        "div",
        {},
        h("dt", { title: name }, name, copyButton(text, name)),
        h("dd", {}, h("pre", {}, isLong ? `${text.slice(0, LONGEST)}\n… ${text.length - LONGEST} more characters: copy it to see all` : text)),
      );
    }),
  );
}

/** A literal as plain JSON, or a text. */
export function plainOf(literal, depth) {
  if (depth > DEEPEST) return "…";
  if (literal.scalar) return scalarOf(literal.scalar, depth);
  if (literal.collection) return several(literal.collection.literals || [], (each) => plainOf(each, depth + 1));
  if (literal.map) {
    const entries = Object.entries(literal.map.literals || {});
    const shown = entries.slice(0, MOST).map(([name, value]) => [name, plainOf(value, depth + 1)]);
    if (entries.length > MOST) shown.push(["…", `${entries.length - MOST} more`]);
    return Object.fromEntries(shown);
  }
  if (literal.offloadedMetadata) return `(in ${literal.offloadedMetadata.uri || "another place"})`;
  return literal;
}

function several(found, plain) {
  const shown = found.slice(0, MOST).map(plain);
  if (found.length > MOST) shown.push(`… ${found.length - MOST} more`);
  return shown;
}

function scalarOf(scalar, depth) {
  const { primitive, blob, binary, schema, noneType, error, generic, structuredDataset, union } = scalar;
  if (primitive) return primitiveOf(primitive);
  if (noneType) return "None";
  if (union) return plainOf(union.value || {}, depth + 1);
  if (generic) return generic;
  if (blob) return blob.uri || "(a blob without a place)";
  if (structuredDataset) return structuredDataset.uri || structuredDataset;
  if (schema) return schema.uri || schema;
  if (binary) return binaryOf(binary);
  if (error) return error.message || error;
  return scalar;
}

function primitiveOf(primitive) {
  if ("integer" in primitive) return String(primitive.integer);
  if ("floatValue" in primitive) return String(primitive.floatValue);
  if ("stringValue" in primitive) return primitive.stringValue === "" ? "''" : primitive.stringValue;
  if ("boolean" in primitive) return primitive.boolean ? "True" : "False";
  if ("datetime" in primitive) return iso(millis(primitive.datetime)) || primitive.datetime;
  if ("duration" in primitive) return primitive.duration;
  return "";
}

/** The bytes of a field, which are base64 in JSON. */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
}

/** Dataclasses and models are MessagePack; what cannot be read is shown by its size. */
function binaryOf({ value = "", tag = "" }) {
  const bytes = bytesOf(value);
  if (tag === "msgpack") {
    try {
      return unpacked({ bytes, view: new DataView(bytes.buffer), at: 0 }, 0);
    } catch {
      // It is shown by its size.
    }
  }
  return `(${bytes.length} bytes${tag ? `, ${tag}` : ""})`;
}

/** Decode MessagePack. */
function unpacked(reader, depth) {
  if (depth > DEEPEST) throw new Error("too deep");
  const { view } = reader;
  const type = view.getUint8(reader.at);
  reader.at += 1;
  const number = (size, get) => {
    const found = view[get](reader.at);
    reader.at += size;
    return typeof found === "bigint" ? (Number.isSafeInteger(Number(found)) ? Number(found) : String(found)) : found;
  };
  const text = (length) => new TextDecoder().decode(part(length));
  const part = (length) => {
    if (reader.at + length > reader.bytes.length) throw new Error("cut off");
    reader.at += length;
    return reader.bytes.subarray(reader.at - length, reader.at);
  };
  const list = (length) => {
    const found = [];
    for (let at = 0; at < length; at += 1) found.push(unpacked(reader, depth + 1));
    return found.length > MOST ? [...found.slice(0, MOST), `… ${found.length - MOST} more`] : found;
  };
  const map = (length) => {
    const found = [];
    for (let at = 0; at < length; at += 1) found.push([String(unpacked(reader, depth + 1)), unpacked(reader, depth + 1)]);
    return Object.fromEntries(found);
  };
  if (type < 0x80) return type;
  if (type < 0x90) return map(type & 15);
  if (type < 0xa0) return list(type & 15);
  if (type < 0xc0) return text(type & 31);
  if (type >= 0xe0) return type - 256;
  switch (type) {
    case 0xc0: return null;
    case 0xc2: return false;
    case 0xc3: return true;
    case 0xc4: return `(${part(number(1, "getUint8")).length} bytes)`;
    case 0xc5: return `(${part(number(2, "getUint16")).length} bytes)`;
    case 0xc6: return `(${part(number(4, "getUint32")).length} bytes)`;
    case 0xca: return number(4, "getFloat32");
    case 0xcb: return number(8, "getFloat64");
    case 0xcc: return number(1, "getUint8");
    case 0xcd: return number(2, "getUint16");
    case 0xce: return number(4, "getUint32");
    case 0xcf: return number(8, "getBigUint64");
    case 0xd0: return number(1, "getInt8");
    case 0xd1: return number(2, "getInt16");
    case 0xd2: return number(4, "getInt32");
    case 0xd3: return number(8, "getBigInt64");
    case 0xd9: return text(number(1, "getUint8"));
    case 0xda: return text(number(2, "getUint16"));
    case 0xdb: return text(number(4, "getUint32"));
    case 0xdc: return list(number(2, "getUint16"));
    case 0xdd: return list(number(4, "getUint32"));
    case 0xde: return map(number(2, "getUint16"));
    case 0xdf: return map(number(4, "getUint32"));
    default: throw new Error(`type ${type}`);
  }
}
