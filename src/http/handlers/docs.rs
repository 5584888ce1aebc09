//! The page at `/docs`: the OpenAPI document, on which each operation can be tried. And a page for each problem code.
//!
//! Owns the pages, the files that they load, and their content security policies. The page at `/docs` uses no other host and has no
//! inline script or style, so the policy can be strict. ADR 0011 says why it is Swagger UI.

use actix_web::http::header::{self, AcceptEncoding, ContentEncoding, Encoding, Header};
use actix_web::{HttpRequest, HttpResponse, web};

use crate::http::Problem;
use crate::http::extractors::NoParameters;
use crate::http::problem_table::Kind;
use crate::http::routes::{DOCS_SCRIPT, DOCS_STYLE, SWAGGER_UI_SCRIPT, SWAGGER_UI_STYLE};

/// Allows only what the page needs, and only from this host. The style sheet of Swagger UI has its arrows as `data:`
/// URLs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long a browser may use the files without revalidation. Their names are the same in each release, so that the
/// page of one replica finds them on another. After an upgrade, a browser may use the old files for this long.
const FILES_CACHE_CONTROL: &str = "max-age=3600";

/// The page of a problem is text only.
const PROBLEM_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// As for the OpenAPI document: after an upgrade, a browser may show the old text for this long.
const PROBLEM_CACHE_CONTROL: &str = "max-age=300";

struct File {
    path: &'static str,
    media_type: &'static str,
    content: &'static [u8],
    /// The content for clients that accept gzip.
    compressed: Option<&'static [u8]>,
}

const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const FILES: [File; 4] = [
    File { path: DOCS_STYLE, media_type: CSS, content: include_bytes!("../docs_page/page.css"), compressed: None },
    File { path: DOCS_SCRIPT, media_type: SCRIPT, content: include_bytes!("../docs_page/page.js"), compressed: None },
    File {
        path: SWAGGER_UI_STYLE,
        media_type: CSS,
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css")),
        compressed: Some(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.gz"))),
    },
    File {
        path: SWAGGER_UI_SCRIPT,
        media_type: SCRIPT,
        content: include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js")),
        compressed: Some(include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.gz"))),
    },
];

/// `GET /docs`
pub async fn page(_: NoParameters) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(include_str!("../docs_page/page.html").replace("{version}", env!("SWAGGER_UI_VERSION")))
}

/// `GET /problems/{code}`: the page to which the `type` of a problem leads. It needs no token, because a person opens it
/// in a browser.
pub async fn problem(code: web::Path<String>, _: NoParameters) -> Result<HttpResponse, Problem> {
    let kind = Kind::find(&code).ok_or(Problem::RouteNotFound)?;
    Ok(HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, PROBLEM_CACHE_CONTROL))
        .insert_header((header::CONTENT_SECURITY_POLICY, PROBLEM_POLICY))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .body(kind.page()))
}

/// A file that the page loads, by its path.
pub async fn file(request: HttpRequest, _: NoParameters) -> Result<HttpResponse, Problem> {
    let file = FILES.iter().find(|file| file.path == request.path()).ok_or(Problem::RouteNotFound)?;
    let mut response = HttpResponse::Ok();
    response
        .content_type(file.media_type)
        .insert_header((header::CACHE_CONTROL, FILES_CACHE_CONTROL))
        .insert_header((header::VARY, "accept-encoding"));
    Ok(match file.compressed.filter(|_| takes_gzip(&request)) {
        Some(compressed) => response.insert_header(ContentEncoding::Gzip).body(compressed),
        None => response.body(file.content),
    })
}

fn takes_gzip(request: &HttpRequest) -> bool {
    let offered = [Encoding::gzip(), Encoding::identity()];
    AcceptEncoding::parse(request).is_ok_and(|accepted| accepted.negotiate(offered.iter()) == Some(Encoding::gzip()))
}
