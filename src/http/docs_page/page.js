'use strict';

SwaggerUIBundle({
  url: 'openapi.yaml',
  dom_id: '#api',
  deepLinking: true,
  tryItOutEnabled: true,
  // Else a host elsewhere is asked whether the document is valid.
  validatorUrl: null,
  requestInterceptor(request) {
    if (/^application\/(?:x-)?ndjson/.test(request.headers['Content-Type'])) request.body = inOneLine(request.body);
    return request;
  },
});

/** The page shows an item over several lines, where a line is an item. What is more than one item stays as it is. */
function inOneLine(body) {
  try {
    JSON.parse(body);
  } catch {
    return body;
  }
  return body.replace(/[\r\n]+/g, ' ');
}
