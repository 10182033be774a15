/* The ids of forgotten requests: kept for their time, by whoever opens the memfd. */
#include <string.h>
#include <unistd.h>

#include "runtime/base/channel.h"
#include "runtime/journal/once.h"
#include "tests/harness/test.h"

static void make_id(uint64_t number, uint8_t id[ONCE_ID_BYTES]) {
    memset(id, 0, ONCE_ID_BYTES);
    memcpy(id, &number, sizeof number);
}

static struct once *open_once(int fd, bool format) {
    struct once *once = NULL;
    EXPECT_OK(once_open(fd, format, &once));
    return once;
}

static int make_fd(void) {
    int fd = -1;
    EXPECT_OK(memfd_make("once", once_bytes(), &fd));
    return fd;
}

TEST(ids_are_known_by_owner_until_they_expire) {
    int fd = make_fd();
    struct once *once = open_once(fd, true);
    uint8_t a[ONCE_ID_BYTES];
    uint8_t b[ONCE_ID_BYTES];
    make_id(1, a);
    make_id(2, b);
    once_add(once, a, 7, 100);
    once_add(once, b, 7, 200);
    EXPECT(once_has(once, a, 7) && once_has(once, b, 7) && !once_has(once, a, 8));
    once_expire(once, 99);
    EXPECT_EQ(once_count(once), 2);
    once_expire(once, 100);
    EXPECT(!once_has(once, a, 7) && once_has(once, b, 7));
    once_expire(once, 1000);
    EXPECT_EQ(once_count(once), 0);
    once_close(once);
    close(fd);
}

TEST(they_outlive_who_wrote_them) {
    int fd = make_fd();
    struct once *once = open_once(fd, true);
    uint8_t id[ONCE_ID_BYTES];
    uint64_t life = once_life(once);
    for (uint64_t i = 0; i < 1000; i++) {
        make_id(i, id);
        once_add(once, id, i % 3, 1000 + i);
    }
    once_expire(once, 1500);
    once_close(once);
    once = open_once(fd, false);
    EXPECT_EQ(once_life(once), life);
    EXPECT_EQ(once_count(once), 499);
    for (uint64_t i = 0; i < 1000; i++) {
        make_id(i, id);
        EXPECT_EQ(once_has(once, id, i % 3), i > 500);
    }
    once_close(once);
    once = open_once(fd, true);
    EXPECT(once_life(once) != life && once_count(once) == 0);
    once_close(once);
    close(fd);
}

TEST(a_full_table_has_no_room_until_the_oldest_expires) {
    int fd = make_fd();
    struct once *once = open_once(fd, true);
    uint8_t id[ONCE_ID_BYTES];
    for (uint64_t round = 0; round < 2; round++) { /* the second one goes round the ring's end */
        for (uint64_t i = 0; once_has_room(once, 1); i++) {
            make_id(round << 32 | i, id);
            once_add(once, id, 1, 1000 * (round + 1));
        }
        EXPECT_EQ(once_count(once), ONCE_ENTRIES);
        make_id(round << 32, id);
        EXPECT(once_has(once, id, 1));
        once_expire(once, 1000 * (round + 1));
        EXPECT(once_has_room(once, ONCE_ENTRIES) && !once_has(once, id, 1));
        make_id(77, id);
        once_add(once, id, 1, 1000 * (round + 1) + 1);
        once_expire(once, 1000 * (round + 1) + 1);
    }
    once_close(once);
    close(fd);
}

TEST(another_memfd_is_refused) {
    int fd = make_fd();
    struct once *once = NULL;
    EXPECT_FAILS(once_open(fd, false, &once), STATUS_INVALID, "damaged");
    close(fd);
}
