'use strict';

SwaggerUIBundle({
  url: 'openapi.yaml',
  dom_id: '#api',
  deepLinking: true,
  tryItOutEnabled: true,
  // Else a host elsewhere is asked whether the document is valid.
  validatorUrl: null,
  plugins: [foldedDescription],
  requestInterceptor(request) {
    if (/^application\/(?:x-)?ndjson/.test(request.headers['Content-Type'])) request.body = inOneLine(request.body);
    return request;
  },
});

/** Folds the document's description, so that the first screen has "Authorize" and the operations. */
function foldedDescription() {
  return {
    wrapComponents: {
      InfoContainer: (Original, { React }) => (props) =>
        React.createElement(
          'details',
          { className: 'description' },
          React.createElement('summary', null, 'Hapax: keys, retries, errors, lists and limits'),
          React.createElement(Original, props),
        ),
    },
  };
}

/** The page shows an item over several lines, where a line is an item. What is more than one item stays as it is. */
function inOneLine(body) {
  try {
    JSON.parse(body);
  } catch {
    return body;
  }
  return body.replace(/[\r\n]+/g, ' ');
}
