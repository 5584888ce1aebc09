'use strict';

SwaggerUIBundle({
  url: '/openapi.yaml',
  dom_id: '#api',
  deepLinking: true,
  tryItOutEnabled: true,
  // Else a host elsewhere is asked whether the document is valid.
  validatorUrl: null,
});
