import org.codelibs.opensearch.runner.OpenSearchRunner;

/** One OpenSearch node on loopback, until it is ended by a signal. */
public class SearchEngine {
    private static final String USAGE =
            "Usage: SearchEngine HTTP-PORT TRANSPORT-PORT DIRECTORY";

    public static void main(String[] args) throws InterruptedException {
        if (args.length != 3) {
            System.err.println(USAGE);
            System.exit(2);
        }
        OpenSearchRunner runner = new OpenSearchRunner();
        runner.onBuild((number, settings) -> {
            settings.put("network.host", "127.0.0.1");
            settings.put("http.port", args[0]);
            settings.put("transport.port", args[1]);
            settings.put("discovery.type", "single-node");
            settings.putList("node.roles", "cluster_manager", "data", "ingest");
            // the disk of a test machine may be as full as it likes
            settings.put("cluster.routing.allocation.disk.threshold_enabled", "false");
        }).build(OpenSearchRunner.newConfigs()
                .basePath(args[2]).numOfNode(1).clusterName("test"));
        Thread.currentThread().join(); // for ever: the node's threads are daemons
    }
}
