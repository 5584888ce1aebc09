'use strict';

// Redocly rule: operations that require an idempotency key must say so in the contract.
//
// The option `operations` lists them, for example "POST /jobs". Each must be in the contract and have a header
// parameter `Idempotency-Key` with `required: true`, either its own or that of its path. Its own parameter overrides that
// of the path (OpenAPI 3.1, Path Item Object).

const HEADER = 'Idempotency-Key';

const idempotencyKeyRequired = ({ operations = [] }) => {
  const absent = new Set(operations);
  return {
    Paths: {
      PathItem(pathItem, { key: path, location, resolve, report }) {
        for (const name of operations) {
          const [method, ofPath] = name.split(' ');
          const verb = method.toLowerCase();
          if (ofPath !== path || pathItem[verb] === undefined) continue;
          absent.delete(name);
          const parameter = keyAmong(pathItem[verb].parameters, resolve) ?? keyAmong(pathItem.parameters, resolve);
          const flaw = flawOf(parameter);
          if (flaw !== undefined) report({ message: `${name} ${flaw}.`, location: location.child(verb).key() });
        }
      },
    },
    Root: {
      leave(_root, { location, report }) {
        for (const name of absent) {
          report({ message: `${name} is not in the contract.`, location: location.child('paths').key() });
        }
      },
    },
  };
};

function flawOf(parameter) {
  if (parameter === undefined) return `has no parameter ${HEADER} in the header`;
  if (parameter.required !== true) return `has the header parameter ${HEADER} without required: true`;
  return undefined;
}

/** Header field names are case-insensitive (RFC 9110, section 5.1). */
function keyAmong(parameters, resolve) {
  return (parameters ?? [])
    .map((parameter) => resolve(parameter).node)
    .find((parameter) => parameter?.in === 'header' && parameter.name?.toLowerCase() === HEADER.toLowerCase());
}

module.exports = idempotencyKeyRequired;
