/* The payload of a SUBMIT: what the mapping takes must hold what struct request promises, and what the journal keeps of
 * it must read back; and any bytes may lie where such a record is expected. */
#include "runtime/request/frame_request.h"
#include "runtime/request/request_record.h"
#include "tests/fuzz/support_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_record(const struct request *request) {
    struct buf record = {0};
    struct buf again = {0};
    struct request *read = NULL;
    uint32_t prompt = request->n_prompts - 1;
    request_record_write(request, prompt, &record);
    CHECK(request_record_read(record.data, record.size, prompt, &read) == STATUS_OK, "%s", status_text());
    request_record_write(read, prompt, &again);
    CHECK(record.size == again.size && memcmp(record.data, again.data, record.size) == 0, "another record");
    request_free(read);
    buf_free(&record);
    buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct request_context *context = fuzz_context();
    struct tsp_frame frame = {.type = TSP_SUBMIT, .stream = 1, .payload = data, .size = (uint32_t)size};
    struct tsp_message message;
    struct request *request = NULL;
    if (request_record_read(data, size, 0, &request) == STATUS_OK) {
        request_free(request);
    }
    if (size > 65536 || tsp_decode(&frame, &message) != STATUS_OK) {
        return 0;
    }
    enum status status = frame_request_parse(context, message.body.submit.fields, 1, &request);
    if (status == STATUS_OK) {
        fuzz_check_request(context, request);
        check_record(request);
        request_free(request);
    } else {
        int http_status = tsp_code_http_status(frame_error_code(status));
        CHECK(http_status == 400 || http_status == 404, "a bad request is no %d: %s", http_status, status_text());
    }
    return 0;
}
