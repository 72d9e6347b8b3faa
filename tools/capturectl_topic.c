/* capturectl topic: the table that the migration console prints for a topic. */

#include "tools/capturectl.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>
#include <stdio.h>

/* the console's columns, the last one padded too */
#define ROW "%-30s %-10s %-10s\n"

static void print_row(void *ctx, int32_t partition, int64_t end) {
    char number[16], records[24];
    const ctl_options *opt = ctx;

    if (opt->json) {
        cJSON *object = cJSON_CreateObject();

        cJSON_AddStringToObject(object, "topic", opt->topic);
        text_add_int(object, "partition", partition);
        text_add_int(object, "records", end);
        text_put_json(object);
        return;
    }

    snprintf(number, sizeof(number), "%" PRId32, partition);
    snprintf(records, sizeof(records), "%" PRId64, end);
    ctl_print(ROW, opt->topic, number, records);
}

void ctl_topic(const ctl_options *opt) {
    if (!opt->json) {
        ctl_print(ROW, "TOPIC", "PARTITION", "RECORDS");
    }

    ctl_end_offsets(opt, print_row, (void *)opt);
}
