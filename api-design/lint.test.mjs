// Tests that the lint fails for invalid contracts. They write variants of the contract to a temporary folder and need
// no network.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import core from '@redocly/openapi-core';

const here = fileURLToPath(new URL('.', import.meta.url));
const contract = join(here, 'jobs-api.yaml');
const cli = join(here, 'node_modules/@redocly/cli/bin/cli.js');
const OURS = 'hapax/idempotency-key-required';

const folder = mkdtempSync(join(tmpdir(), 'hapax-lint-'));
after(() => rmSync(folder, { recursive: true }));

/** Lints a file with the rules of this folder. Returns the exit code and the problems. */
function lint(file) {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [cli, 'lint', file, '--config', join(here, 'redocly.yaml'), '--format', 'json'],
    {
      cwd: folder,
      encoding: 'utf8',
      env: { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' },
    },
  );
  assert.match(stdout, /^\{/, `the lint printed no report: ${stderr}`);
  const { problems } = JSON.parse(stdout);
  return { status, rules: [...new Set(problems.map(({ ruleId }) => ruleId))], problems };
}

/** Applies `change` to the contract and lints the result. */
function lintChanged(change) {
  const changed = core.parseYaml(readFileSync(contract, 'utf8'));
  change(changed);
  const file = join(folder, 'changed.yaml');
  writeFileSync(file, core.stringifyYaml(changed));
  return lint(file);
}

/** Removes the idempotency key parameter from POST /jobs and returns it, so that a test can put it elsewhere. */
function takeKey({ paths, components }) {
  const reference = '#/components/parameters/IdempotencyKey';
  const { post } = paths['/jobs'];
  assert.ok(post.parameters.some(({ $ref }) => $ref === reference));
  post.parameters = post.parameters.filter(({ $ref }) => $ref !== reference);
  const parameter = components.parameters.IdempotencyKey;
  delete components.parameters.IdempotencyKey;
  return parameter;
}

test('the contract passes', () => {
  const { status, problems } = lint(contract);
  assert.deepEqual(problems, []);
  assert.equal(status, 0);
});

test('the contract passes after it is parsed and written again, so the other tests fail for their change only', () => {
  const { status, problems } = lintChanged(() => {});
  assert.deepEqual(problems, []);
  assert.equal(status, 0);
});

test('without the key parameter, only our rule fails', () => {
  const { status, rules, problems } = lintChanged(takeKey);
  assert.equal(status, 1);
  assert.deepEqual(rules, [OURS]);
  assert.equal(problems[0].message, 'POST /jobs has no parameter Idempotency-Key in the header.');
});

for (const required of [false, undefined]) {
  test(`with required: ${required}, only our rule fails`, () => {
    const { status, rules, problems } = lintChanged(({ components }) => {
      components.parameters.IdempotencyKey.required = required;
    });
    assert.equal(status, 1);
    assert.deepEqual(rules, [OURS]);
    assert.equal(problems[0].message, 'POST /jobs has the header parameter Idempotency-Key without required: true.');
  });
}

test('a key parameter outside the header does not count', () => {
  const { status, rules } = lintChanged(({ components }) => {
    components.parameters.IdempotencyKey.in = 'query';
  });
  assert.equal(status, 1);
  assert.deepEqual(rules, [OURS]);
});

test('the key parameter of the path counts, with any case of its name', () => {
  const { status, problems } = lintChanged((changed) => {
    changed.paths['/jobs'].parameters.push({ ...takeKey(changed), name: 'idempotency-key' });
  });
  assert.deepEqual(problems, []);
  assert.equal(status, 0);
});

test('an optional key parameter of the operation overrides a required one of its path', () => {
  const { status, rules } = lintChanged((changed) => {
    const key = takeKey(changed);
    changed.paths['/jobs'].parameters.push(key);
    changed.paths['/jobs'].post.parameters.push({ ...key, required: false });
  });
  assert.equal(status, 1);
  assert.deepEqual(rules, [OURS]);
});

test('without the operation, our rule fails', () => {
  const { status, rules, problems } = lintChanged((changed) => {
    changed.paths['/work'] = changed.paths['/jobs'];
    delete changed.paths['/jobs'];
  });
  assert.equal(status, 1);
  assert.deepEqual(rules, [OURS]);
  assert.equal(problems[0].message, 'POST /jobs is not in the contract.');
});

const composites = {
  'an array as const': (components) => {
    const { properties } = components.responses.RequestQuotaExceeded.content['application/problem+json'].schema;
    properties['violated-policies'] = { description: 'One.', const: ['requests'] };
  },
  'an object as const': ({ schemas }) => {
    schemas.NewJob.properties.unique.const = { by: ['/payload'] };
  },
  'an array in enum': ({ schemas }) => {
    schemas.Queues.properties.queues.enum = [[]];
  },
};

for (const [what, change] of Object.entries(composites)) {
  test(`${what} fails our rule`, () => {
    const { status, rules } = lintChanged(({ components }) => change(components));
    assert.equal(status, 1);
    assert.ok(rules.includes('hapax/scalar-values'), rules.join());
  });
}

test('a retryable status without Retry-After fails', () => {
  for (const name of ['BodyTooSlow', 'InternalError', 'QuotaExceeded']) {
    const { status, rules } = lintChanged(({ components }) => {
      delete components.responses[name].headers['Retry-After'];
    });
    assert.equal(status, 1);
    assert.deepEqual(rules, ['response-contains-header'], name);
  }
});

const examples = {
  'of a response': ['no-invalid-media-type-examples', ({ components }) => {
    components.responses.Put.content['application/json'].example.priority = 9;
  }],
  'with an undescribed member': ['no-invalid-media-type-examples', ({ components }) => {
    components.responses.KeyReused.content['application/problem+json'].example.key = 'k';
  }],
  'of a request': ['no-invalid-media-type-examples', ({ paths }) => {
    delete paths['/jobs'].post.requestBody.content['application/json'].examples.full.value.payload;
  }],
  'of a key': ['no-invalid-parameter-examples', ({ components }) => {
    components.parameters.IdempotencyKey.examples.bare.value = 'two words';
  }],
  'of a header field': ['no-invalid-schema-examples', ({ components }) => {
    components.headers.Location.schema.examples = ['/jobs/1'];
  }],
};

for (const [what, [rule, change]] of Object.entries(examples)) {
  test(`a wrong example ${what} fails`, () => {
    const { status, rules } = lintChanged(change);
    assert.equal(status, 1);
    assert.deepEqual(rules, [rule]);
  });
}

test('the lock file names no registry', () => {
  const { packages } = JSON.parse(readFileSync(join(here, 'package-lock.json'), 'utf8'));
  const resolved = Object.entries(packages).filter(([, entry]) => 'resolved' in entry);
  assert.deepEqual(resolved, []);
});
