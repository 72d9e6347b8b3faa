# Targets
#   all          everything below it (the default)
#   module       build/ngx_http_capture_module.so
#   sidecar      build/capture-sidecar
#   launcher     build/capture-proxy
#   tools        build/capturectl, build/mock-broker (for script/demo)
#   man          build/man/*.1 and build/completion/*, which capturectl tells
#   unit         the C unit tests, build/unit/test_*
#   check        builds and runs the unit tests
#   asan         all of it with ASan and UBSan in build/asan/, the module for the
#                NGINX of `script/bootstrap --test`; asan-check runs its units
#   kill-points  build/kill-points/: a sidecar that dies where a test says, and
#                the unit test of that; kill-points-check runs the latter
#   install      into $(DESTDIR)$(prefix), the module into $(moduledir)
#   clean        removes what make built; distclean all of build/
#   help         prints this
#
# Variables
#   NGINX_SRC=DIR    an NGINX source tree instead of the installed headers; if it
#                    was configured, the module is built with the same options
#   NGINX_CONFIGURE  configure options for a tree that was not
#   BUILD=DIR        another build directory
#   SAN=LIST         gcc's -fsanitize list
#   KILL_POINTS=1    with the places of sidecar/step.h where it can die
#   V=1              shows the commands
#   CC, CFLAGS, CPPFLAGS, LDFLAGS, DESTDIR, prefix, moduledir: as usual
#
# Run script/bootstrap once before: it installs the Debian packages and builds
# librdkafka where the distribution's is too old.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

TOP := $(CURDIR)
BUILD ?= build
prefix ?= /usr/local
moduledir ?= $(prefix)/lib/nginx/modules

ifeq ($(origin CC),default)
CC := gcc
endif
ifdef SAN
CFLAGS ?= -O1 -g
else
CFLAGS ?= -O2 -g -fstack-protector-strong
CPPFLAGS ?= -D_FORTIFY_SOURCE=2
endif
LDFLAGS ?= -Wl,-z,relro -Wl,-z,now

# The part that a packager's CFLAGS and LDFLAGS must not replace.
SANITIZE := $(if $(SAN),-fsanitize=$(SAN))
WARN := -Wall -Wextra -Werror -Wformat -Werror=format-security
COMPILE = $(CC) -std=gnu11 $(WARN) -fno-omit-frame-pointer -fPIE -pthread \
    $(SANITIZE) $(CFLAGS) $(CPPFLAGS) $(if $(KILL_POINTS),-DCAPTURE_KILL_POINTS) \
    -I. $(RDKAFKA_CFLAGS)
LINK = $(CC) -pie $(SANITIZE) $(CFLAGS) $(LDFLAGS)

# $(call say,WHAT)COMMAND: WHAT instead of the command itself, unless V=1
say = $(if $(V),,@echo "  $(1)  $@";)

-include build/deps/librdkafka.mk

WIRE := $(wildcard wire/*.c) $(wildcard proto/*.c)
STAGES := $(filter-out sidecar/main.c,$(wildcard sidecar/*.c))
TOOLS := $(filter-out tools/mock-broker.c,$(wildcard tools/*.c))
LAUNCHER := $(wildcard launcher/*.c)
UNITS := $(patsubst t/unit/%.c,$(BUILD)/unit/%,$(wildcard t/unit/test_*.c))

OBJ := $(BUILD)/obj
objects = $(patsubst %.c,$(OBJ)/%.o,$(1))

LIBS := $(RDKAFKA_LIBS) -lmicrohttpd -ljansson -lsqlite3 -lcurl -lssl -lcrypto -lz \
    -lm -lpthread

.PHONY: all module sidecar launcher tools man unit check asan asan-check \
    kill-points kill-points-check install clean distclean help
all: module sidecar launcher tools man
sidecar: $(BUILD)/capture-sidecar
launcher: $(BUILD)/capture-proxy
tools: $(BUILD)/capturectl $(BUILD)/mock-broker
unit: $(UNITS) $(BUILD)/unit/kafka-probe $(BUILD)/unit/aws-probe


# sidecar, tools, unit tests

# An archive, so that a program takes only what it uses, and a unit test can put
# its own in the place of a stage's neighbour.
$(BUILD)/libcapture.a: $(call objects,$(WIRE) $(STAGES)) $(OBJ)/sources
	@rm -f $@
	$(call say,AR  )$(AR) rcs $@ $(filter %.o,$^)

$(BUILD)/capture-sidecar: $(call objects,sidecar/main.c) $(BUILD)/libcapture.a
	$(call say,LINK)$(LINK) -o $@ $^ $(LIBS)

# cJSON before librdkafka, whose archive holds one of its own
$(BUILD)/capturectl: $(call objects,$(TOOLS)) $(BUILD)/libcapture.a
	$(call say,LINK)$(LINK) -o $@ $^ -lcjson -lcurl -lpcre2-8 $(LIBS)

# Out of capturectl's own tables; one page by itself and one a subcommand.
man: $(BUILD)/man/capturectl.1
$(BUILD)/man/capturectl.1: $(BUILD)/capturectl
	@mkdir -p $(@D) $(BUILD)/completion
	$(call say,MAN )for name in $$($< man names); do \
	    $< man $$name >$(@D)/capturectl-$$name.1 || exit 1; done; \
	$< completion bash >$(BUILD)/completion/capturectl && \
	$< completion zsh >$(BUILD)/completion/_capturectl && \
	$< man >$@

# Of the archive it takes the log, the loop and names of keys: no Kafka.
$(BUILD)/capture-proxy: $(call objects,$(LAUNCHER)) $(BUILD)/libcapture.a
	$(call say,LINK)$(LINK) -o $@ $^ -lcjson -lpcre2-8 -lm -lpthread

# For script/demo; nothing of ours is in it, and it is not installed.
$(BUILD)/mock-broker: $(call objects,tools/mock-broker.c)
	$(call say,LINK)$(LINK) -o $@ $^ $(LIBS)

# The launcher is not in the archive.
$(BUILD)/unit/test_launcher: $(call objects,$(wildcard launcher/pump.c \
    launcher/resolve.c))

$(UNITS): $(BUILD)/unit/%: $(OBJ)/t/unit/%.o $(BUILD)/libcapture.a
	@mkdir -p $(@D)
	$(call say,LINK)$(LINK) -o $@ $(filter %.o,$^) $(filter %.a,$^) \
	    $$(pkg-config --libs check) $(LIBS)

# Drive sidecar/kafka.c and sidecar/aws_sigv4.c alone: t/sidecar
$(BUILD)/unit/%-probe: $(OBJ)/t/tools/%_probe.o $(BUILD)/libcapture.a
	@mkdir -p $(@D)
	$(call say,LINK)$(LINK) -o $@ $^ $(LIBS)

$(OBJ)/%.o: %.c $(OBJ)/recipe
	@mkdir -p $(@D)
	$(call say,CC  )$(COMPILE) -MMD -MP -c -o $@ $<

# Files that change when what they hold does: the flags, by which all is built
# again, and the set of sources, without which a deleted one would stay linked.
# (a quote in it, as in "the distribution's", must not end the shell's)
RECIPE = $(subst ','\'',$(RDKAFKA_VERSION) $(COMPILE) $(LINK))
$(OBJ)/recipe: FORCE
	@[ -n '$(RDKAFKA_LIBS)' ] \
	    || { echo 'no librdkafka: run script/bootstrap first' >&2; exit 1; }
	@mkdir -p $(@D)
	@echo '$(RECIPE)' | cmp -s - $@ || echo '$(RECIPE)' >$@
$(OBJ)/sources: FORCE
	@mkdir -p $(@D)
	@echo '$(WIRE) $(STAGES)' | cmp -s - $@ || echo '$(WIRE) $(STAGES)' >$@
.PHONY: FORCE

-include $(patsubst %.o,%.d,$(call objects,$(WIRE) $(STAGES) $(TOOLS) \
    $(LAUNCHER) sidecar/main.c tools/mock-broker.c $(wildcard t/unit/*.c) $(wildcard t/tools/*.c)))

# Check's own limit, 4 s for a case, is not for machines that are busy.  Four at a
# time, the longest first: some of them mostly wait.  Only what fails is shown whole.
LONGEST := $(addprefix $(BUILD)/unit/test_,death link kafka journal keep)
define run_units
@printf '%s\n' $(1) | xargs -P 4 -I{} sh -c 'CK_TIMEOUT_MULTIPLIER=5 \
    timeout 300 {} >{}.log 2>&1; rc=$$?; \
    if [ $$rc = 0 ]; then echo "{}: $$(grep -a "^100%" {}.log)"; \
    else cat {}.log; echo "failed: {} ($$rc)"; exit 1; fi'
endef
check: unit
	$(call run_units,$(LONGEST) $(filter-out $(LONGEST),$(UNITS)))

# module

# script/build-module runs NGINX's own configure when it must, then its Makefile.
module:
	+@V='$(V)' CC='$(CC)' NGINX_SRC='$(NGINX_SRC)' \
	CFLAGS='$(if $(SAN),-fno-omit-frame-pointer) $(SANITIZE) $(CFLAGS) $(CPPFLAGS)' \
	LDFLAGS='$(SANITIZE) $(LDFLAGS)' NGINX_CONFIGURE='$(NGINX_CONFIGURE)' MAKE='$(MAKE)' \
	script/build-module $(BUILD)


# the rest

ASAN := BUILD=build/asan SAN=address,undefined NGINX_SRC=build/nginx-asan \
    KILL_POINTS=1
asan:
	+$(MAKE) $(ASAN) all unit
asan-check:
	+$(MAKE) $(ASAN) check

DEATH := build/kill-points/unit/test_death
HOST_DEATH := build/kill-points/unit/test_journal \
    build/kill-points/unit/test_journal_pools
kill-points:
	+$(MAKE) BUILD=build/kill-points KILL_POINTS=1 sidecar $(DEATH) \
	    $(HOST_DEATH)
kill-points-check: kill-points
	$(call run_units,$(DEATH) $(HOST_DEATH))

install: all
	install -D -m 755 $(BUILD)/capture-sidecar \
	    $(DESTDIR)$(prefix)/bin/capture-sidecar
	install -D -m 755 $(BUILD)/capture-proxy \
	    $(DESTDIR)$(prefix)/bin/capture-proxy
	install -D -m 755 $(BUILD)/capturectl $(DESTDIR)$(prefix)/bin/capturectl
	install -d $(DESTDIR)$(prefix)/share/man/man1
	install -m 644 $(BUILD)/man/*.1 $(DESTDIR)$(prefix)/share/man/man1
	install -D -m 644 $(BUILD)/completion/capturectl \
	    $(DESTDIR)$(prefix)/share/bash-completion/completions/capturectl
	install -D -m 644 $(BUILD)/completion/_capturectl \
	    $(DESTDIR)$(prefix)/share/zsh/site-functions/_capturectl
	install -D -m 644 $(BUILD)/ngx_http_capture_module.so \
	    $(DESTDIR)$(moduledir)/ngx_http_capture_module.so

clean:
	rm -rf $(BUILD)/man $(BUILD)/completion $(BUILD)/obj $(BUILD)/unit $(BUILD)/asan $(BUILD)/clang $(BUILD)/kill-points $(BUILD)/module \
	    $(BUILD)/libcapture.a $(BUILD)/capture-sidecar $(BUILD)/capture-proxy \
	    $(BUILD)/capturectl \
	    $(BUILD)/mock-broker $(BUILD)/ngx_http_capture_module.so

distclean:
	rm -rf build

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
