'use strict';

// Redocly rule: `const` and `enum` may contain scalars only. Client generators cannot make a type of an array or an
// object there, and some fail. For the elements of an array, use `items: {const: …}`.

const scalarValues = () => ({
  Schema(schema, { location, report }) {
    for (const [keyword, values] of [['const', [schema.const]], ['enum', schema.enum ?? []]]) {
      if (values.some(isComposite)) {
        report({ message: `${keyword} holds a value that is not a scalar.`, location: location.child(keyword) });
      }
    }
  },
});

const isComposite = (value) => typeof value === 'object' && value !== null;

module.exports = scalarValues;
