'use strict';

// Our own Redocly rules.

module.exports = () => ({
  id: 'hapax',
  rules: {
    oas3: {
      'idempotency-key-required': require('./idempotency-key-rule.js'),
      'scalar-values': require('./scalar-values-rule.js'),
    },
  },
});
