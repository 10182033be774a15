/* What each path answers. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/http/http_writer.h"
#include "runtime/server/server_internal.h"

enum route_id { ROUTE_CHAT, ROUTE_COMPLETIONS, ROUTE_MODELS, ROUTE_MODEL, ROUTE_HEALTH, ROUTE_READY, ROUTE_METRICS };

/* Health checks and scrapers carry no keys. */
static const struct route {
    const char *path;
    enum route_id id;
    bool post;
    bool open;
} routes[] = {
    {"/v1/chat/completions", ROUTE_CHAT, true, false},
    {"/v1/completions", ROUTE_COMPLETIONS, true, false},
    {"/v1/models", ROUTE_MODELS, false, false},
    {"/v1/models/", ROUTE_MODEL, false, false},
    {"/health", ROUTE_HEALTH, false, true},
    {"/ready", ROUTE_READY, false, true},
    {"/metrics", ROUTE_METRICS, false, true},
};

static const struct route *find_route(const char *path) {
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        size_t size = strlen(routes[i].path);
        bool prefix = routes[i].path[size - 1] == '/';
        if (prefix ? strncmp(path, routes[i].path, size) == 0 && path[size] != 0 : strcmp(path, routes[i].path) == 0) {
            return &routes[i];
        }
    }
    return NULL;
}

static const char *allowed_methods(const struct route *route) {
    return route->post ? "Allow: POST, OPTIONS\r\n" : "Allow: GET, HEAD, OPTIONS\r\n";
}

static void reply(struct connection *connection, int status, const char *type, const char *headers, const void *body,
                  size_t size) {
    http_write_response(connection_out(connection), status, type, headers, body, size, connection->keep_alive,
                        connection->head_only);
    connection_finish(connection);
}

static void reply_error(struct connection *connection, const struct openai_error *error, const char *headers) {
    struct buf body = {0};
    openai_write_error(&body, error);
    reply(connection, error->http_status, "application/json", headers, body.data, body.size);
    buf_free(&body);
}

void routes_reply_error(struct connection *connection, const struct openai_error *error, bool keep_alive) {
    const char *headers = "";
    switch (error->http_status) {
    case 429:
    case 503: headers = "Retry-After: 1\r\nretry-after-ms: 1000\r\n"; break;
    case 500:
    case 505: headers = "x-should-retry: false\r\n"; break; /* the same request would meet the same fate */
    default: break;
    }
    connection->keep_alive = keep_alive;
    reply_error(connection, error, headers);
}

/* Refuses a request by its head. Its body may be still to come: only without one does the connection stay. */
static bool refuse(struct connection *connection, int http_status, const char *code, const char *text,
                   const char *headers) {
    struct openai_error error;
    openai_error_set(&error, STATUS_INVALID, text);
    error.http_status = http_status;
    error.code = code;
    if (connection->head_seen) {
        connection->keep_alive = false;
    }
    reply_error(connection, &error, headers);
    return false;
}

/* A form or text/plain body is what a web page may post to any address without asking; JSON it may not. */
static bool is_json(const struct http_request *request) {
    const char *type = http_request_header(request, "content-type");
    size_t size = strlen("application/json");
    return type != NULL && strncasecmp(type, "application/json", size) == 0 &&
           (type[size] == 0 || type[size] == ';' || type[size] == ' ');
}

static bool check_key(struct connection *connection, const struct http_request *request, const struct route *route) {
    const struct key_set *keys = connection->server->keys;
    if (keys == NULL || route->open || key_set_allows(keys, http_request_header(request, "authorization"))) {
        return true;
    }
    return refuse(connection, 401, "invalid_api_key", "No valid API key; send one as \"Authorization: Bearer KEY\"",
                  "WWW-Authenticate: Bearer\r\n");
}

bool routes_check_head(struct connection *connection, const struct http_request *request) {
    const struct route *route = find_route(request->path);
    if (route == NULL) {
        char text[256];
        snprintf(text, sizeof text, "Unknown path %.160s; the API is under /v1", request->path);
        return refuse(connection, 404, "unknown_path", text, "");
    }
    bool options = request->method == HTTP_METHOD_OPTIONS;
    bool get = request->method == HTTP_METHOD_GET || request->method == HTTP_METHOD_HEAD;
    if (!options && !(route->post ? request->method == HTTP_METHOD_POST : get)) {
        return refuse(connection, 405, "method_not_allowed",
                      route->post ? "This path takes POST only" : "This path takes GET only", allowed_methods(route));
    }
    if (options) {
        return true;
    }
    if (!check_key(connection, request, route)) {
        return false;
    }
    if (route->post && !is_json(request)) {
        return refuse(connection, 415, "unsupported_media_type",
                      "The body must be JSON; send it with the header \"Content-Type: application/json\"", "");
    }
    return true;
}

/* Clients write what a segment of a path cannot hold as %XX: the slash of "org/model" among it. */
static void decode_segment(const char *segment, struct buf *out) {
    while (*segment != 0) {
        char byte = *segment++;
        if (byte == '%' && isxdigit((unsigned char)segment[0]) && isxdigit((unsigned char)segment[1])) {
            byte = (char)strtoul((char[]){segment[0], segment[1], 0}, NULL, 16);
            segment += 2;
        }
        buf_append(out, &byte, 1);
    }
}

static void answer_model(struct connection *connection, const char *segment) {
    struct server *server = connection->server;
    struct buf name = {0};
    decode_segment(segment, &name);
    bool known = strcmp(buf_cstr(&name), server->context->model) == 0 && strlen(name.data) == name.size;
    if (!known) {
        struct openai_error error;
        char text[400];
        snprintf(text, sizeof text, "model: The model `%.128s` does not exist; this server serves `%.200s`", name.data,
                 server->context->model);
        openai_error_set(&error, STATUS_NOT_FOUND, text);
        routes_reply_error(connection, &error, connection->keep_alive);
    }
    buf_free(&name);
    if (!known) {
        return;
    }
    struct buf body = {0};
    openai_write_models(&body, server->context, server->created, false);
    reply(connection, 200, "application/json", "", body.data, body.size);
    buf_free(&body);
}

static void answer_models(struct connection *connection) {
    struct buf body = {0};
    openai_write_models(&body, connection->server->context, connection->server->created, true);
    reply(connection, 200, "application/json", "", body.data, body.size);
    buf_free(&body);
}

/* Whether a request would be served now: one replica with its group up is enough. */
static void answer_ready(struct connection *connection) {
    struct server *server = connection->server;
    const struct replica *best = replicas_choose(server);
    struct openai_error error;
    if (server->draining) {
        openai_error_set(&error, STATUS_CLOSED, "The server is shutting down");
    } else if (best->failed) {
        openai_error_set(&error, STATUS_CLOSED, best->cause);
    } else if (!best->up) {
        openai_error_set(&error, STATUS_CLOSED, "The workers are starting");
    } else {
        reply(connection, 200, "application/json", "", "{\"status\":\"ready\"}", 18);
        return;
    }
    routes_reply_error(connection, &error, connection->keep_alive);
}

static void answer_metrics(struct connection *connection) {
    struct buf body = {0};
    metrics_write(connection->server, &body);
    reply(connection, 200, "text/plain; version=0.0.4; charset=utf-8", "", body.data, body.size);
    buf_free(&body);
}

void routes_handle(struct connection *connection, const struct http_request *request) {
    const struct route *route = find_route(request->path);
    if (request->method == HTTP_METHOD_OPTIONS) {
        reply(connection, 200, "text/plain", allowed_methods(route), "", 0);
        return;
    }
    switch (route->id) {
    case ROUTE_CHAT:
        call_begin(connection, OPENAI_CHAT, request->body, request->body_size, request->minor_version);
        break;
    case ROUTE_COMPLETIONS:
        call_begin(connection, OPENAI_COMPLETION, request->body, request->body_size, request->minor_version);
        break;
    case ROUTE_MODELS: answer_models(connection); break;
    case ROUTE_MODEL: answer_model(connection, request->path + strlen("/v1/models/")); break;
    case ROUTE_HEALTH: reply(connection, 200, "application/json", "", "{\"status\":\"alive\"}", 18); break;
    case ROUTE_READY: answer_ready(connection); break;
    case ROUTE_METRICS: answer_metrics(connection); break;
    }
}
