#include "runtime/tokenizer/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/tokenizer/tokenizer.h"

/* Children are a list: the sets are small and their first bytes few. 0 ends a list, since the root is no one's child.
 */
struct added_node {
    uint32_t child;
    uint32_t sibling;
    uint32_t entry; /* index + 1; 0 where no token ends */
    uint8_t byte;
};

static uint32_t add_node(struct added_set *set, uint8_t byte) {
    if (set->n_nodes == set->capacity) {
        set->capacity = set->capacity > 0 ? 2 * set->capacity : 64;
        set->nodes = xrealloc(set->nodes, set->capacity, sizeof *set->nodes);
    }
    set->nodes[set->n_nodes] = (struct added_node){.byte = byte};
    return (uint32_t)set->n_nodes++;
}

static uint32_t find_child(const struct added_set *set, uint32_t node, uint8_t byte) {
    uint32_t child = set->nodes[node].child;
    while (child != 0 && set->nodes[child].byte != byte) {
        child = set->nodes[child].sibling;
    }
    return child;
}

void added_set_add(struct added_set *set, const char *content, size_t size, struct added_entry entry) {
    if (set->n_nodes == 0) {
        add_node(set, 0);
        set->only_first = (unsigned char)content[0];
    }
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)content[i];
        uint32_t child = find_child(set, node, byte);
        if (child == 0) {
            child = add_node(set, byte);
            set->nodes[child].sibling = set->nodes[node].child;
            set->nodes[node].child = child;
        }
        node = child;
    }
    uint8_t first = (uint8_t)content[0];
    set->first[first] = true;
    if (set->only_first != first) {
        set->only_first = -1;
    }
    set->entries = xrealloc(set->entries, set->n_entries + 1, sizeof *set->entries);
    set->entries[set->n_entries++] = entry;
    set->nodes[node].entry = (uint32_t)set->n_entries;
}

void added_set_free(struct added_set *set) {
    free(set->nodes);
    free(set->entries);
    *set = (struct added_set){0};
}

/* The ranges are in order: the first that ends behind `begin` decides. */
bool added_guard_touches(const struct added_guard *guard, size_t begin, size_t end) {
    begin += guard->offset;
    end += guard->offset;
    size_t low = 0;
    size_t high = guard->n_ranges;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (guard->ranges[middle].end > begin) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low < guard->n_ranges && guard->ranges[low].begin < end;
}

/* The longest token at `at` that is not guarded. */
static bool match_at(const struct added_set *set, const char *text, size_t size, size_t at,
                     const struct added_guard *guard, struct added_match *match) {
    bool found = false;
    uint32_t node = 0;
    for (size_t i = at; i < size; i++) {
        node = find_child(set, node, (uint8_t)text[i]);
        if (node == 0) {
            break;
        }
        uint32_t entry = set->nodes[node].entry;
        if (entry != 0 && (guard == NULL || !added_guard_touches(guard, at, i + 1))) {
            *match = (struct added_match){.begin = at, .end = i + 1, .entry = &set->entries[entry - 1]};
            found = true;
        }
    }
    return found;
}

bool added_set_find(const struct added_set *set, const char *text, size_t size, size_t from,
                    const struct added_guard *guard, struct added_match *match) {
    if (set->n_entries == 0) {
        return false;
    }
    for (size_t at = from; at < size; at++) {
        if (set->only_first >= 0) {
            const char *next = memchr(text + at, set->only_first, size - at);
            if (next == NULL) {
                return false;
            }
            at = (size_t)(next - text);
        }
        if (set->first[(unsigned char)text[at]] && match_at(set, text, size, at, guard, match)) {
            return true;
        }
    }
    return false;
}
