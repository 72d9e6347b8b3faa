/*
 * capturectl decode: every record as one line, either protobuf's JSON mapping
 * of a TrafficStream (and beyond it "size" and, where it can be read, "text"
 * beside "data", and where the record came from), or readable like the
 * Replayer's dump-raw.
 */

#include "tools/capturectl.h"
#include "tools/capturectl_text.h"

#include <inttypes.h>

typedef struct {
    const ctl_options *opt;
    int64_t base; /* the first record's second; all others count from it */
    bool has_base;
} decoder;

static void add_payload(cJSON *object, const record_observation *o) {
    switch (o->kind) {

    case RECORD_READ:
    case RECORD_READ_SEGMENT:
    case RECORD_WRITE:
    case RECORD_WRITE_SEGMENT:
        text_add_int(object, "size", (int64_t)o->data.len);
        text_add_bytes(object, o->data.data, o->data.len);
        break;

    case RECORD_EXCEPTION:
        text_add_string(object, "message", o->data.data, o->data.len);
        break;

    case RECORD_END_OF_MESSAGE:
        if (o->has_first_line_len) {
            text_add_int(object, "firstLineByteLength", o->first_line_len);
        }
        if (o->has_headers_len) {
            text_add_int(object, "headersByteLength", o->headers_len);
        }
        break;

    case RECORD_RELEASED:
        cJSON_AddBoolToObject(object, "timedOut", o->timed_out);
        break;

    default:
        break;
    }
}

static cJSON *observation_json(const record_observation *o) {
    char time[TEXT_TIME_SIZE];
    cJSON *object = cJSON_CreateObject();

    if (o->has_ts) {
        cJSON_AddStringToObject(object, "ts", text_time(record_ts_ns(o), time));
    }

    if (o->kind != RECORD_NONE) {
        add_payload(cJSON_AddObjectToObject(object, record_kind_name(o->kind)),
                    o);
    }

    return object;
}

static void add_origin(cJSON *object, const ctl_value *v) {
    if (v->partition >= 0) {
        text_add_int(object, "partition", v->partition);
        text_add_int(object, "offset", v->offset);
    }

    if (v->key != NULL) {
        text_add_string(object, "key", v->key, v->key_len);
    }
}

static void put_json(void *ctx, ctl_record *r) {
    record_observation o;
    const record_info *info = &r->info;
    cJSON *list, *object = cJSON_CreateObject();

    (void)ctx;

    add_origin(object, r->from);
    text_add_string(object, "connectionId", info->connection_id.data,
                    info->connection_id.len);
    text_add_string(object, "nodeId", info->node_id.data, info->node_id.len);

    if (info->has_prior_requests) {
        text_add_int(object, "priorRequestsReceived", info->prior_requests);
    }

    if (info->has_unterminated_read) {
        cJSON_AddBoolToObject(object, "lastObservationWasUnterminatedRead",
                              info->unterminated_read);
    }

    list = cJSON_AddArrayToObject(object, "subStream");

    while (record_next(&r->reader, &o)) {
        cJSON_AddItemToArray(list, observation_json(&o));
    }

    text_add_int(object, info->last ? "numberOfThisLastChunk" : "number",
                 info->number);
    text_put_json(object);
}

static bool is_read(const record_observation *o) {
    return o->kind == RECORD_READ || o->kind == RECORD_READ_SEGMENT;
}

static bool is_write(const record_observation *o) {
    return o->kind == RECORD_WRITE || o->kind == RECORD_WRITE_SEGMENT;
}

static const char *token(const record_observation *o) {
    switch (o->kind) {
    case RECORD_BIND:
    case RECORD_CONNECT:
        return "OPEN";
    case RECORD_CLOSE:
        return "CLOSE";
    case RECORD_DISCONNECT:
        return "DISCONNECT";
    case RECORD_END_OF_MESSAGE:
        return "EOM";
    case RECORD_DROPPED:
        return "DROPPED";
    case RECORD_EXCEPTION:
        return "EXCEPTION";
    case RECORD_SEGMENT_END:
        return "SEGMENT_END";
    case RECORD_RELEASED:
        return "REQUEST_RELEASED";
    default:
        return "UNKNOWN";
    }
}

/*
 * A run of reads or of writes as one token, the ends of segments among them
 * left out. Called with its first in *o; returns whether *o holds what follows
 * it.
 */
static bool put_run(const decoder *d, record_reader *reader,
                    record_observation *o) {
    bool more;
    bool reads = is_read(o);
    size_t size = 0, shown = 0;
    record_reader ahead = *reader; /* a first pass for the size */
    record_observation first = *o;

    for (more = true; more; more = record_next(&ahead, o)) {
        if (o->kind != RECORD_SEGMENT_END &&
            !(reads ? is_read(o) : is_write(o))) {
            break;
        }
        size += o->data.len;
    }

    ctl_print(" %c[%zu]", reads ? 'R' : 'W', size);

    if (size > 0 && d->opt->preview > 0) {
        ctl_print(": ");
    }

    *o = first;

    for (more = true; more; more = record_next(reader, o)) {
        size_t n = (size_t)d->opt->preview - shown;

        if (o->kind != RECORD_SEGMENT_END &&
            !(reads ? is_read(o) : is_write(o))) {
            break;
        }

        n = n < o->data.len ? n : o->data.len;
        text_put_dotted(o->data.data, n);
        shown += n;
    }

    if (shown > 0 && shown < size) {
        ctl_print("...");
    }

    return more;
}

static void put_times(decoder *d, record_reader reader) {
    record_observation o;
    int64_t min = INT64_MAX, max = INT64_MIN;

    while (record_next(&reader, &o)) {
        min = o.ts_seconds < min ? o.ts_seconds : min;
        max = o.ts_seconds > max ? o.ts_seconds : max;
    }

    if (!d->has_base) {
        d->base = min;
        d->has_base = true;
    }

    /* in floating point, since a broken clock's difference may not fit */
    ctl_print("[%" PRId64 "-%" PRId64 "] %6.0f.0s %3.0f.0s ", min, max,
              (double)min - (double)d->base, (double)max - (double)min);
}

static void put_readable(void *ctx, ctl_record *r) {
    bool more;
    decoder *d = ctx;
    record_observation o;

    put_times(d, r->reader);

    if (r->from->partition >= 0) {
        ctl_print("p:%" PRId32 " o:%6" PRId64 " ", r->from->partition,
                  r->from->offset);
    }

    ctl_print("ncs:");
    text_put_escaped(r->info.node_id.data, r->info.node_id.len);
    ctl_print(".");
    text_put_escaped(r->info.connection_id.data, r->info.connection_id.len);
    ctl_print(".%" PRId32 ":", r->info.number);

    more = record_next(&r->reader, &o);

    while (more) {
        if (is_read(&o) || is_write(&o)) {
            more = put_run(d, &r->reader, &o);
        } else {
            ctl_print(" %s", token(&o));
            more = record_next(&r->reader, &o);
        }
    }

    ctl_print("\n");
}

void ctl_decode(const ctl_options *opt) {
    decoder d = {.opt = opt};

    ctl_read_records(opt, opt->readable ? put_readable : put_json, &d);
}
