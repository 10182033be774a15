#include "runtime/tokenizer/unicode.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/alloc.h"
#include "runtime/base/utf8.h"

struct mark_run {
    uint32_t first;
    uint32_t last;
    uint8_t combining_class;
};

/* second is 0 where one code point stands for one. */
struct decomposition {
    uint32_t code;
    uint32_t first;
    uint32_t second;
};

struct composition {
    uint32_t first;
    uint32_t second;
    uint32_t code;
};

#include "runtime/tokenizer/unicode_tab.inc"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* Hangul syllables are computed: Unicode 16, section 3.12. */
enum {
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

struct mark {
    uint32_t code;
    uint8_t combining_class;
};

/* One stretch of text between two places where NFC cannot join characters. */
struct segment {
    struct mark *marks;
    size_t size;
    size_t capacity;
};

static uint8_t combining_class(uint32_t code) {
    if ((unicode_flags(code) & UNICODE_MARK) == 0) {
        return 0;
    }
    size_t low = 0;
    size_t high = COUNT(mark_runs);
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (mark_runs[middle].first <= code) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return mark_runs[low].combining_class;
}

static const struct decomposition *find_decomposition(uint32_t code) {
    size_t low = 0;
    size_t high = COUNT(decompositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (decompositions[middle].code == code) {
            return &decompositions[middle];
        }
        if (decompositions[middle].code < code) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

/* The primary composite of the pair, or 0. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first - L_BASE < L_COUNT && second - V_BASE < V_COUNT) {
        return S_BASE + ((first - L_BASE) * V_COUNT + (second - V_BASE)) * T_COUNT;
    }
    if (first - S_BASE < S_COUNT && (first - S_BASE) % T_COUNT == 0 && second - T_BASE - 1 < T_COUNT - 1) {
        return first + (second - T_BASE);
    }
    uint64_t wanted = (uint64_t)first << 32 | second;
    size_t low = 0;
    size_t high = COUNT(compositions);
    while (low < high) {
        size_t middle = (low + high) / 2;
        uint64_t pair = (uint64_t)compositions[middle].first << 32 | compositions[middle].second;
        if (pair == wanted) {
            return compositions[middle].code;
        }
        if (pair < wanted) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return 0;
}

static void add_mark(struct segment *segment, uint32_t code) {
    if (segment->size == segment->capacity) {
        segment->capacity = segment->capacity > 0 ? 2 * segment->capacity : 32;
        segment->marks = xrealloc(segment->marks, segment->capacity, sizeof *segment->marks);
    }
    segment->marks[segment->size++] = (struct mark){.code = code, .combining_class = combining_class(code)};
}

/* Adds the full canonical decomposition. The depth is that of the data, at most 4. */
static void decompose(struct segment *segment, uint32_t code) {
    if (code - S_BASE < S_COUNT) {
        uint32_t s = code - S_BASE;
        add_mark(segment, L_BASE + s / (V_COUNT * T_COUNT));
        add_mark(segment, V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT);
        if (s % T_COUNT != 0) {
            add_mark(segment, T_BASE + s % T_COUNT);
        }
        return;
    }
    const struct decomposition *parts = find_decomposition(code);
    if (parts == NULL) {
        add_mark(segment, code);
        return;
    }
    decompose(segment, parts->first);
    if (parts->second != 0) {
        decompose(segment, parts->second);
    }
}

/* Canonical ordering of one run of marks: by class, and marks of one class keep their order. Long runs are rare and
 * hostile: those are sorted by counting. */
static void sort_marks(struct mark *marks, size_t size) {
    if (size <= 32) {
        for (size_t i = 1; i < size; i++) {
            struct mark moved = marks[i];
            size_t at = i;
            for (; at > 0 && marks[at - 1].combining_class > moved.combining_class; at--) {
                marks[at] = marks[at - 1];
            }
            marks[at] = moved;
        }
        return;
    }
    size_t starts[257] = {0};
    struct mark *sorted = xcalloc(size, sizeof *sorted);
    for (size_t i = 0; i < size; i++) {
        starts[marks[i].combining_class + 1]++;
    }
    for (size_t i = 1; i < 257; i++) {
        starts[i] += starts[i - 1];
    }
    for (size_t i = 0; i < size; i++) {
        sorted[starts[marks[i].combining_class]++] = marks[i];
    }
    memcpy(marks, sorted, size * sizeof *sorted);
    free(sorted);
}

static void order(struct segment *segment) {
    for (size_t i = 0; i < segment->size;) {
        size_t end = i;
        while (end < segment->size && segment->marks[end].combining_class != 0) {
            end++;
        }
        sort_marks(segment->marks + i, end - i);
        i = end + 1;
    }
}

/* Canonical composition: a character joins the last starter unless one between them blocks it. */
static void recompose(struct segment *segment) {
    struct mark *marks = segment->marks;
    size_t kept = 0;
    size_t starter = SIZE_MAX;
    int last_class = -1; /* of the character before, if it is not the starter itself */
    for (size_t i = 0; i < segment->size; i++) {
        struct mark mark = marks[i];
        if (starter != SIZE_MAX && last_class < (int)mark.combining_class) {
            uint32_t joined = compose(marks[starter].code, mark.code);
            if (joined != 0) {
                marks[starter].code = joined;
                continue;
            }
        }
        if (mark.combining_class == 0) {
            starter = kept;
            last_class = -1;
        } else {
            last_class = mark.combining_class;
        }
        marks[kept++] = mark;
    }
    segment->size = kept;
}

static void append_segment(struct segment *segment, const char *text, size_t size, struct buf *out) {
    segment->size = 0;
    for (size_t at = 0, length; at < size; at += length) {
        decompose(segment, unicode_next(text + at, &length));
    }
    order(segment);
    recompose(segment);
    for (size_t i = 0; i < segment->size; i++) {
        out->size += utf8_encode(segment->marks[i].code, buf_reserve(out, 4));
    }
}

/* The next place at or behind `at` before which NFC joins nothing: a character of class 0 that stays as it is. */
static size_t next_boundary(const char *text, size_t size, size_t at) {
    size_t length;
    while (at < size && (unicode_flags(unicode_next(text + at, &length)) & (UNICODE_RECOMPOSES | UNICODE_MARK)) != 0) {
        at += length;
    }
    return at;
}

bool unicode_nfc(const char *text, size_t size, struct buf *out) {
    struct segment segment = {0};
    bool changed = false;
    size_t copied = 0;
    size_t boundary = 0;
    unsigned last_class = 0;
    for (size_t at = 0, length; at < size; at += length) {
        unsigned char byte = (unsigned char)text[at];
        if (byte < 0xCC) { /* below U+0300 nothing joins or changes */
            length = byte < 0x80 ? 1 : 2;
            boundary = at;
            last_class = 0;
            continue;
        }
        uint32_t code = unicode_next(text + at, &length);
        unsigned flags = unicode_flags(code);
        if ((flags & (UNICODE_RECOMPOSES | UNICODE_MARK)) == 0) {
            boundary = at;
            last_class = 0;
            continue;
        }
        unsigned class_here = combining_class(code);
        if ((flags & UNICODE_RECOMPOSES) == 0 && (class_here == 0 || class_here >= last_class)) {
            last_class = class_here;
            continue;
        }
        buf_append(out, text + copied, boundary - copied);
        copied = next_boundary(text, size, at);
        append_segment(&segment, text + boundary, copied - boundary, out);
        changed = true;
        boundary = copied;
        last_class = 0;
        length = copied - at;
    }
    free(segment.marks);
    if (changed) {
        buf_append(out, text + copied, size - copied);
    }
    return changed;
}
