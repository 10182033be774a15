#include <stdio.h>
#include <string.h>

#include "runtime/request/openai.h"

size_t openai_path_length(const char *text) {
    size_t size = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.[]");
    return text[size] == ':' && text[size + 1] == ' ' ? size : 0;
}

void openai_error_set(struct openai_error *error, enum status status, const char *text) {
    *error = (struct openai_error){.http_status = 400, .type = "invalid_request_error"};
    switch (status) {
    case STATUS_NOT_FOUND:
        error->http_status = 404;
        error->code = "model_not_found";
        break;
    case STATUS_LIMIT: error->code = "context_length_exceeded"; break;
    case STATUS_UNSUPPORTED: error->code = "unsupported_parameter"; break;
    case STATUS_BUSY:
        error->http_status = 429;
        error->type = "rate_limit_error";
        error->code = "server_overloaded";
        break;
    case STATUS_TIMEOUT:
        error->http_status = 504;
        error->type = "server_error";
        error->code = "timeout";
        break;
    case STATUS_CLOSED:
        error->http_status = 503;
        error->type = "server_error";
        error->code = "service_unavailable";
        break;
    case STATUS_IO:
    case STATUS_INTERNAL:
        error->http_status = 500;
        error->type = "server_error";
        error->code = "internal_error";
        break;
    case STATUS_OK:
    case STATUS_INVALID: break;
    }
    size_t path = error->http_status < 429 ? openai_path_length(text) : 0;
    if (path < sizeof error->param) {
        memcpy(error->param, text, path);
    }
    snprintf(error->message, sizeof error->message, "%s", text);
}
