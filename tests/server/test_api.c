/* The API end to end: a real front-end, real HTTP, scripted workers. */
#include <jansson.h>
#include <unistd.h>

#include "tests/harness/test.h"
#include "tests/server/support_rig.h"

#define QUESTION "\"messages\":[{\"role\":\"user\",\"content\":\"What is 40 + 2?\"}]"

static json_t *parse(struct response *response) {
    json_error_t error;
    json_t *root = json_loadb(response->body.data, response->body.size, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL) {
        test_fail(__FILE__, __LINE__, "%s in %s", error.text, buf_cstr(&response->body));
    }
    return root;
}

TEST(chat_reply_is_whole) {
    struct rig rig;
    struct rig_options options = rig_options();
    rig_start(&rig, &options);
    struct response response = {0};
    rig_post(&rig, "/v1/chat/completions", "{" QUESTION "}", &response);
    printf("%s\n", buf_cstr(&response.body));
    EXPECT_EQ(response.status, 200);
    json_t *root = parse(&response);
    const json_t *choice = json_array_get(json_object_get(root, "choices"), 0);
    const json_t *message = json_object_get(choice, "message");
    EXPECT_TEXT(json_string_value(json_object_get(message, "content")), "The sum is 42.");
    EXPECT_TEXT(json_string_value(json_object_get(message, "reasoning_content")), "Well.\n");
    EXPECT_TEXT(json_string_value(json_object_get(choice, "finish_reason")), "stop");
    json_decref(root);
    response_free(&response);
    rig_stop(&rig);
}

TEST(chat_stream_is_whole) {
    struct rig rig;
    struct rig_options options = rig_options();
    rig_start(&rig, &options);
    struct response response = {0};
    rig_post(&rig, "/v1/chat/completions", "{" QUESTION ",\"stream\":true}", &response);
    printf("%s\n", buf_cstr(&response.body));
    EXPECT_EQ(response.status, 200);
    response_free(&response);
    rig_stop(&rig);
}
