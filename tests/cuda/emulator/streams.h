/* Streams: lists of work that is done when somebody waits for it. */
#ifndef DLCC_EMULATOR_STREAMS_H
#define DLCC_EMULATOR_STREAMS_H

#include "driver.h"

int stream_create(void **stream);
int stream_destroy(void *stream);
int stream_finish(void *stream);
int streams_finish(void);
/* `snapshot`: what is to be copied is read at once, as from memory that is not pinned. */
int streams_copy(void *stream, void *to, const void *from, size_t bytes, int snapshot);
int streams_launch(void *stream, const launch *made);
int stream_wait(void *stream, void *event);
int event_create(void **event, unsigned flags);
int event_destroy(void *event);
int event_record(void *event, void *stream);
int event_done(void *event);
int event_finish(void *event);
int event_between(void *start, void *end, float *milliseconds);

#endif
