'use strict';

// A rule of our own for Redocly: `const` and `enum` hold scalars. Client generators cannot make a type of an array or an
// object there, and some stop altogether. `items: {const: …}` says the same of an array's elements.

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
