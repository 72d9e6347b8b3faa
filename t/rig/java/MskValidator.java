import java.io.FileReader;
import java.io.IOException;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URLDecoder;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.Base64;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;
import javax.security.auth.callback.Callback;
import javax.security.auth.callback.UnsupportedCallbackException;
import javax.security.auth.login.AppConfigurationEntry;
import org.apache.kafka.common.security.auth.AuthenticateCallbackHandler;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerToken;
import org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallback;

/**
 * A broker's check of an Amazon MSK IAM token, for tests: it computes the
 * signature again, with the credentials in the file that the system property
 * msk.credentials names.
 */
public class MskValidator implements AuthenticateCallbackHandler {
    private final Properties known = new Properties();

    @Override
    public void configure(Map<String, ?> configs, String mechanism,
                          List<AppConfigurationEntry> entries) {
        try (Reader in = new FileReader(System.getProperty("msk.credentials"))) {
            known.load(in);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    @Override
    public void close() { }

    @Override
    public void handle(Callback[] callbacks) throws UnsupportedCallbackException {
        for (Callback callback : callbacks) {
            if (!(callback instanceof OAuthBearerValidatorCallback v))
                throw new UnsupportedCallbackException(callback);
            try {
                v.token(check(v.tokenValue()));
                System.out.println("msk: token accepted");
            } catch (Exception e) {
                System.out.println("msk: token refused: " + e.getMessage());
                v.error("invalid_token", null, null);
            }
        }
    }

    private OAuthBearerToken check(String token) throws Exception {
        URI url = URI.create(new String(Base64.getUrlDecoder().decode(token),
                                        StandardCharsets.UTF_8));
        Map<String, String> query = new TreeMap<>();
        for (String pair : url.getRawQuery().split("&")) {
            String[] p = pair.split("=", 2);
            query.put(p[0], URLDecoder.decode(p[1], StandardCharsets.UTF_8));
        }
        String given = query.remove("X-Amz-Signature");
        need(query.remove("User-Agent") != null, "no User-Agent");
        need("kafka-cluster:Connect".equals(query.get("Action")), "action");
        need("host".equals(query.get("X-Amz-SignedHeaders")), "headers");
        String session = known.getProperty("session");
        need(session.equals(query.get("X-Amz-Security-Token")), "session token");
        String[] scope = query.get("X-Amz-Credential").split("/");
        need(scope[0].equals(known.getProperty("access")), "access key");
        need(url.getHost().equals("kafka." + scope[2] + ".amazonaws.com"), "host");
        need(given.equals(signature(url.getHost(), query, scope)), "signature");

        String date = query.get("X-Amz-Date");
        long start = LocalDateTime
            .parse(date, DateTimeFormatter.ofPattern("yyyyMMdd'T'HHmmss'Z'"))
            .toInstant(ZoneOffset.UTC).toEpochMilli();
        long end = start + 1000 * Long.parseLong(query.get("X-Amz-Expires"));
        need(System.currentTimeMillis() < end, "expired");
        return new OAuthBearerToken() {
            public String value() { return token; }
            public Set<String> scope() { return Set.of(); }
            public long lifetimeMs() { return end; }
            public String principalName() { return scope[0]; }
            public Long startTimeMs() { return start; }
        };
    }

    private String signature(String host, Map<String, String> query,
                                    String[] scope) throws Exception {
        String request = "GET\n/\n" + query.entrySet().stream()
            .map(e -> encode(e.getKey()) + "=" + encode(e.getValue()))
            .collect(Collectors.joining("&"))
            + "\nhost:" + host + "\n\nhost\n" + sha256("");
        String text = "AWS4-HMAC-SHA256\n" + query.get("X-Amz-Date") + "\n"
            + String.join("/", List.of(scope).subList(1, scope.length)) + "\n"
            + sha256(request);
        byte[] key = ("AWS4" + known.getProperty("secret")).getBytes();
        for (int i = 1; i < scope.length; i++)
            key = hmac(key, scope[i]);
        return HexFormat.of().formatHex(hmac(key, text));
    }

    private static String encode(String s) {
        return URLEncoder.encode(s, StandardCharsets.UTF_8)
            .replace("+", "%20").replace("*", "%2A").replace("%7E", "~");
    }

    private static String sha256(String s) throws Exception {
        return HexFormat.of().formatHex(
            MessageDigest.getInstance("SHA-256").digest(s.getBytes()));
    }

    private static byte[] hmac(byte[] key, String s) throws Exception {
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        return mac.doFinal(s.getBytes());
    }

    private static void need(boolean condition, String what) {
        if (!condition)
            throw new IllegalArgumentException(what);
    }
}
