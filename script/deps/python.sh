# The tests' Python environment, build/venv, from t/requirements.txt.

provide_python() {
    local name
    name=venv-$(recipe_hash "$(cat t/requirements.txt)" "$(python3 -VV)")
    if [ ! -e "$CACHE/$name/bin/pytest" ]; then
        say "making the tests' Python environment"
        # not by way of cached(): an environment cannot be moved once made
        rm -rf "${CACHE:?}/$name"
        python3 -m venv "$CACHE/$name"
        "$CACHE/$name/bin/pip" install --quiet --disable-pip-version-check \
            -r t/requirements.txt
    fi
    link_into_build "$name" venv
}
