# The Kafka broker that the tests run against: build/kafka/*.jar, by Maven.

provide_kafka() {
    local name
    name=kafka-$(recipe_hash "$(cat t/rig/kafka-pom.xml)")
    [ -e "$CACHE/$name" ] || say "downloading the Kafka broker"
    cached "$name" download_kafka
    link_into_build "$name" kafka
}

# download_kafka TMP OUT
download_kafka() {
    mvn --batch-mode -q -f t/rig/kafka-pom.xml \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DoutputDirectory="$2"
    ls "$2"/kafka_*.jar
}
