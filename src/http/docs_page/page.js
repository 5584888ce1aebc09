'use strict';

SwaggerUIBundle({
  url: 'openapi.yaml',
  dom_id: '#api',
  deepLinking: true,
  tryItOutEnabled: true,
  // Otherwise Swagger UI sends the document's URL to a validator on another host.
  validatorUrl: null,
  plugins: [foldedDescription],
  requestInterceptor(request) {
    if (/^application\/(?:x-)?ndjson/.test(request.headers['Content-Type'])) request.body = inOneLine(request.body);
    return request;
  },
});

/** Folds the document's description, so that the first screen shows "Authorize" and the operations. */
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

/**
 * Joins the lines of a body that is one JSON text. Swagger UI formats an example over several lines, but NDJSON has one
 * item per line. A body with several items stays as it is.
 */
function inOneLine(body) {
  try {
    JSON.parse(body);
  } catch {
    return body;
  }
  return body.replace(/[\r\n]+/g, ' ');
}
