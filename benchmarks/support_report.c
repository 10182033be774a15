#include "benchmarks/support_report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NUMBER_WIDTH 9

static struct {
    const char *bench;
    bool json;
    char heading[1024]; /* of the table that is being printed */
} report;

void report_open(const char *bench, bool json) {
    report.bench = bench;
    report.json = json;
}

static int width_of(const struct cell *cell) {
    int least = cell->text != NULL ? cell->decimals : NUMBER_WIDTH;
    int name = (int)strlen(cell->name);
    return name > least ? name : least;
}

static void print_heading(const struct cell *cells, uint32_t n) {
    char heading[sizeof report.heading] = "";
    size_t used = 0;
    for (uint32_t i = 0; i < n && used < sizeof heading; i++) {
        const char *format = cells[i].text != NULL ? "%-*s " : "%*s ";
        used += (size_t)snprintf(heading + used, sizeof heading - used, format, width_of(&cells[i]), cells[i].name);
    }
    if (strcmp(heading, report.heading) != 0) {
        printf("\n%s\n", heading);
        memcpy(report.heading, heading, sizeof heading);
    }
}

static void print_line(const struct cell *cells, uint32_t n) {
    print_heading(cells, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct cell *cell = &cells[i];
        if (cell->text != NULL) {
            printf("%-*s ", width_of(cell), cell->text);
        } else if (isnan(cell->number)) {
            printf("%*s ", width_of(cell), "-");
        } else {
            printf("%*.*f ", width_of(cell), cell->decimals, cell->number);
        }
    }
    printf("\n");
}

static void print_json(const char *kind, const struct cell *cells, uint32_t n) {
    printf("{\"bench\": \"%s\", \"row\": \"%s\"", report.bench, kind);
    for (uint32_t i = 0; i < n; i++) {
        const struct cell *cell = &cells[i];
        printf(", \"%s\": ", cell->name);
        if (cell->text != NULL) {
            printf("\"%s\"", cell->text); /* names of ours and of cards: nothing to escape */
        } else if (isnan(cell->number)) {
            printf("null");
        } else {
            printf("%.*f", cell->decimals, cell->number);
        }
    }
    printf("}\n");
}

void report_row(const char *kind, const struct cell *cells, uint32_t n) {
    if (report.json) {
        print_json(kind, cells, n);
    } else {
        print_line(cells, n);
    }
    fflush(stdout);
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

struct spread spread_of(double *values, uint32_t n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += values[i];
    }
    qsort(values, n, sizeof *values, compare_doubles);
    return (struct spread){
        .mean = sum / n, .median = values[n / 2], .p99 = values[(uint64_t)(n - 1) * 99 / 100], .max = values[n - 1]};
}
