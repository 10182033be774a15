#include "tests/model/support_reference.h"

#include <math.h>
#include <unistd.h>

#include "runtime/base/alloc.h"
#include "runtime/format/json_in.h"
#include "tests/harness/test.h"

static const json_t *field(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (value == NULL) {
        test_fail(__FILE__, __LINE__, "the reference has no field %s", key);
    }
    return value;
}

static uint32_t *read_ids(const json_t *array, uint32_t *count) {
    *count = (uint32_t)json_array_size(array);
    uint32_t *ids = xcalloc(*count, sizeof *ids);
    for (uint32_t i = 0; i < *count; i++) {
        ids[i] = (uint32_t)json_integer_value(json_array_get(array, i));
    }
    return ids;
}

static float *read_floats(const json_t *array) {
    size_t count = json_array_size(array);
    float *values = xcalloc(count, sizeof *values);
    for (size_t i = 0; i < count; i++) {
        values[i] = (float)json_number_value(json_array_get(array, i));
    }
    return values;
}

static int base64_digit(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = strchr(digits, c);
    return c == '\0' || at == NULL ? -1 : (int)(at - digits);
}

static float *read_base64(const char *text, uint32_t count) {
    uint8_t *bytes = xcalloc(count, 4);
    size_t n = 0;
    uint32_t bits = 0;
    for (size_t i = 0; text[i] != '\0' && text[i] != '='; i++) {
        EXPECT(base64_digit(text[i]) >= 0);
        bits = bits << 6 | (uint32_t)base64_digit(text[i]);
        if (i % 4 != 0 && n < (size_t)count * 4) {
            bytes[n++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
        }
    }
    EXPECT_EQ(n, (size_t)count * 4);
    return (float *)(void *)bytes;
}

static double log_sum_exp(const float *values, uint32_t count) {
    double most = -INFINITY;
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        most = fmax(most, (double)values[i]);
    }
    for (uint32_t i = 0; i < count; i++) {
        sum += exp((double)values[i] - most);
    }
    return most + log(sum);
}

static void read_kept(const json_t *object, uint32_t vocab_size, struct reference_logits *kept) {
    kept->at = (uint32_t)json_integer_value(field(object, "at"));
    const json_t *whole = json_object_get(object, "f32");
    if (whole != NULL) {
        kept->count = vocab_size;
        kept->values = read_base64(json_string_value(whole), vocab_size);
        kept->logsumexp = log_sum_exp(kept->values, vocab_size);
        return;
    }
    kept->ids = read_ids(field(object, "ids"), &kept->count);
    kept->values = read_floats(field(object, "values"));
    kept->logsumexp = json_number_value(field(object, "logsumexp"));
}

static void read_prompt(const json_t *object, uint32_t vocab_size, struct reference_prompt *prompt) {
    uint32_t n_gaps = (uint32_t)json_array_size(field(object, "gaps"));
    prompt->ids = read_ids(field(object, "ids"), &prompt->n_ids);
    prompt->greedy = read_ids(field(object, "greedy"), &prompt->n_greedy);
    prompt->gaps = read_floats(field(object, "gaps"));
    EXPECT_EQ(n_gaps, prompt->n_greedy);
    const json_t *kept = field(object, "logits");
    prompt->n_kept = (uint32_t)json_array_size(kept);
    EXPECT(prompt->n_kept <= REFERENCE_MAX_KEPT);
    for (uint32_t i = 0; i < prompt->n_kept; i++) {
        read_kept(json_array_get(kept, i), vocab_size, &prompt->kept[i]);
    }
    const json_t *bf16 = field(object, "bf16");
    prompt->bf16_max_abs = json_number_value(field(field(bf16, "all"), "max_abs"));
    if (prompt->n_kept > 0) {
        prompt->bf16_kl_mean = json_number_value(field(field(bf16, "kept"), "kl_mean"));
    }
}

bool reference_read(const char *name, struct reference *reference) {
    char path[512];
    json_t *root;
    memset(reference, 0, sizeof *reference);
    snprintf(path, sizeof path, "%s/tests/data/reference/%s.json", TANDEM_SOURCE_DIR, name);
    if (access(path, R_OK) != 0) {
        return false;
    }
    EXPECT_OK(json_in_load(path, (size_t)64 << 20, &root));
    snprintf(reference->name, sizeof reference->name, "%s", name);
    snprintf(reference->sha256, sizeof reference->sha256, "%s", json_string_value(field(root, "weights_sha256")));
    reference->vocab_size = (uint32_t)json_integer_value(field(root, "vocab_size"));
    const json_t *recipe = json_object_get(root, "recipe");
    if (recipe != NULL) {
        snprintf(reference->recipe_class, sizeof reference->recipe_class, "%s",
                 json_string_value(field(recipe, "class")));
        snprintf(reference->recipe_dtype, sizeof reference->recipe_dtype, "%s",
                 json_string_value(field(recipe, "dtype")));
        reference->recipe_seed = (uint32_t)json_integer_value(field(recipe, "seed"));
    }
    const json_t *prompts = field(root, "prompts");
    reference->n_prompts = (uint32_t)json_array_size(prompts);
    EXPECT(reference->n_prompts > 0 && reference->n_prompts <= REFERENCE_MAX_PROMPTS);
    for (uint32_t i = 0; i < reference->n_prompts; i++) {
        read_prompt(json_array_get(prompts, i), reference->vocab_size, &reference->prompts[i]);
    }
    json_decref(root);
    return true;
}

void reference_compare(const struct reference_logits *kept, const float *logits, uint32_t vocab_size, double *max_abs,
                       double *kl) {
    double ours_all = log_sum_exp(logits, vocab_size);
    double rest_theirs = 1;
    double rest_ours = 1;
    *max_abs = 0;
    *kl = 0;
    for (uint32_t i = 0; i < kept->count; i++) {
        double theirs = (double)kept->values[i];
        double ours = (double)logits[kept->ids != NULL ? kept->ids[i] : i];
        double p = exp(theirs - kept->logsumexp);
        *max_abs = fmax(*max_abs, fabs(theirs - ours));
        *kl += p * ((theirs - kept->logsumexp) - (ours - ours_all));
        rest_theirs -= p;
        rest_ours -= exp(ours - ours_all);
    }
    if (kept->count < vocab_size && rest_theirs > 1e-9 && rest_ours > 1e-9) {
        *kl += rest_theirs * log(rest_theirs / rest_ours);
    }
}
