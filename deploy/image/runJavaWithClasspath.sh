#!/bin/sh
#
# Deployments start the Java proxy as `/runJavaWithClasspath.sh CLASS FLAG...`.
# The class is what capture-proxy is instead.

shift
exec capture-proxy "$@"
