import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;

/**
 * The JDBC driver: each line of standard input is a connection to try, of libpq's parameters as name=value
 * with tabs between. Prints what becomes of it: tls or plain as Bursar's console sees it, or why it was refused.
 */
public final class Tls {
    private static Connection connect(Properties all, String database) throws SQLException {
        String url = "jdbc:postgresql://" + all.getProperty("host") + ":" + all.getProperty("port") + "/" + database;
        Properties properties = new Properties();
        for (String name : new String[] {"user", "password", "sslmode", "sslrootcert", "sslcert"}) {
            if (all.containsKey(name)) {
                properties.setProperty(name, all.getProperty(name));
            }
        }
        if (all.containsKey("sslkey")) {
            // DER, where others read PEM.
            properties.setProperty("sslkey", all.getProperty("sslkey").replace(".key", ".pk8"));
        }
        properties.setProperty("ApplicationName", "asked");
        return DriverManager.getConnection(url, properties);
    }

    private static String attempt(Properties all) throws SQLException {
        String name = all.getProperty("dbname");
        try (Connection db = connect(all, name)) {
            try (PreparedStatement sum = db.prepareStatement("select 41 + ?")) {
                sum.setInt(1, 1);
                try (ResultSet rows = sum.executeQuery()) {
                    if (!rows.next() || rows.getInt(1) != 42) {
                        throw new AssertionError("a wrong answer");
                    }
                }
            }
            String asked = "select tls from bursar.clients where database = '" + name + "'";
            try (Connection console = connect(all, "bursar");
                    Statement statement = console.createStatement();
                    ResultSet rows = statement.executeQuery(asked)) {
                rows.next();
                return rows.getString(1).startsWith("TLSv1_3/TLS13_") ? "tls" : "plain";
            }
        }
    }

    public static void main(String[] args) throws IOException {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Properties all = new Properties();
            for (String pair : line.split("\t")) {
                String[] parts = pair.split("=", 2);
                all.setProperty(parts[0], parts[1]);
            }
            try {
                System.out.println(attempt(all));
            } catch (SQLException error) {
                System.out.println("refused: " + String.join(" ", error.getMessage().split("\\s+")));
            }
        }
    }
}
