/* What a benchmark prints: rows of named figures, as a table for people or as JSON lines for programs. */
#ifndef TANDEM_BENCHMARKS_SUPPORT_REPORT_H
#define TANDEM_BENCHMARKS_SUPPORT_REPORT_H

#include <stdbool.h>
#include <stdint.h>

struct cell {
    const char *name; /* the column, and the key in JSON: with its unit, as "step_ms" */
    const char *text; /* NULL: `number` is meant */
    double number;    /* NaN: not measured; "-" in a table and null in JSON */
    int decimals;     /* of a text: the column's width */
};

#define CELL_TEXT(column, value) ((struct cell){.name = (column), .text = (value), .decimals = 16})
#define CELL_WIDE(column, value) ((struct cell){.name = (column), .text = (value), .decimals = 38})
#define CELL(column, value, digits) ((struct cell){.name = (column), .number = (double)(value), .decimals = (digits)})

/* Before the first row: the benchmark's name, and whether JSON is wanted. */
void report_open(const char *bench, bool json);

/* Prints a row. `kind` says in JSON what the row is about ("ceiling", "step", "op"); a table gets a heading whenever
 * the columns are others than those of the row before. */
void report_row(const char *kind, const struct cell *cells, uint32_t n);
#define REPORT_ROW(kind, ...)                                                                                          \
    report_row(kind, (const struct cell[]){__VA_ARGS__},                                                               \
               sizeof((const struct cell[]){__VA_ARGS__}) / sizeof(struct cell))

/* ---- statistics */

struct spread {
    double mean, median, p99, max;
};

/* Sorts `values`; n > 0. */
struct spread spread_of(double *values, uint32_t n);

#endif
