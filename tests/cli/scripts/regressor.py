from pathlib import Path

import joblib
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

DATA = Path("data")
TARGET = "charge"
FEATURES = ["tenure", "calls", "data_gb"]
PARAMS = {"alpha": 0.5, "fit_intercept": True}

table = pd.read_csv(DATA / "customers.csv")
table = table.dropna()
train, test = train_test_split(table, test_size=200, random_state=1)

scaler = StandardScaler()
X_train = scaler.fit_transform(train[FEATURES])
X_test = scaler.transform(test[FEATURES])

model = Ridge(**PARAMS).fit(X_train, train[TARGET])
predicted = model.predict(X_test)
print(mean_absolute_error(test[TARGET], predicted), r2_score(test[TARGET], predicted))
joblib.dump(model, "model.joblib")
